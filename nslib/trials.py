"""The finetuned models of the notebooks: each trained once, kept in the store, and measured on the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
from filelock import FileLock

from nslib.analysis.epsilon import eps_noises, reach_table
from nslib.config import TABLE2, FinetuneConfig, SuiteConfig
from nslib.evaluate.bench import Bench
from nslib.evaluate.comparison import differences, mean_difference, pool_seeds, table2_row
from nslib.evaluate.suite import Evaluation, evaluate_model
from nslib.finetune.rounds import Finetuned, finetune_model
from nslib.intervals import Estimate
from nslib.models import StagedViT
from nslib.nullspace.membership import clean_pass, make_pool
from nslib.profiles import Settings
from nslib.progress import finetune_bar
from nslib.runtime import store_path
from nslib.store import digest, model_digest

VERSION = 1  # part of every stored model: raise it when the same settings give another one
BASE = "base"
TRACED = ("nullspace", "plain", "random")  # Fig. 4: measured after every round
_FRESH = 1000  # seeds from here on are of noises that no round has learned
SHIFTED = ("a", "v2", "r", "sketch", "stylized")


def finetuned(bench: Bench, settings: Settings, objective: str, *, seed: int = 0, **changes) -> Finetuned:
    """The bench's model finetuned with an objective; trained now unless the store has it, resumed where it was stopped.

    Args:
        seed: added to the settings' own.
        changes: of settings.finetune, such as noise or trainable.
    Raises:
        As `finetune_model`.
    """
    cfg = replace(settings.finetune, objective=objective, seed=settings.finetune.seed + seed, **changes)
    traced = objective in TRACED
    suite = _trace_suite(settings)
    inputs = [VERSION, cfg, model_digest(bench.model), bench.source.identity("train"), suite if traced else None]
    target = store_path() / "finetune" / digest(inputs) / f"{objective}.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)

    def measure(number: int, model: StagedViT) -> dict[str, float]:
        return _traced(evaluate_model(model, bench.source, suite, progress=False))

    with FileLock(f"{target}.lock"), finetune_bar(cfg, f"{objective}, seed {cfg.seed}") as on_step:
        return finetune_model(
            bench.model, bench.source, cfg, target=target, on_step=on_step, on_round=measure if traced else None
        )


def _trace_suite(settings: Settings) -> SuiteConfig:
    columns = ("clean", "fgsm", *(c for c in SHIFTED if settings.data.kind == "shapes"))
    return replace(settings.suite, columns=columns, images=settings.finetuning.trace_images)


def _traced(found: Evaluation) -> dict[str, float]:
    """Clean, adversarial and shifted top-1 in percent."""
    values = {"clean": found.estimate("clean").value, "adversarial": found.estimate("fgsm").value}
    shifted = [found.estimate(c).value for c in SHIFTED if c in found.hits]
    return values | ({"shifted": sum(shifted) / len(shifted)} if shifted else {})


def traced_base(bench: Bench, settings: Settings) -> dict[str, float]:
    """What `finetuned` measures after every round, of the model before the first."""
    return _traced(evaluate_model(bench.model, bench.source, _trace_suite(settings), progress=False))


def row(bench: Bench, settings: Settings, objective: str, **changes) -> Evaluation:
    """A model's columns on the study's images; `base` is the model before finetuning, seeds are pooled.

    Args:
        changes: as in `finetuned`.
    """
    if objective == BASE:
        return replace(_measured(bench, settings, bench.model), model=BASE)
    return pool_seeds(seed_rows(bench, settings, objective, **changes), objective)


def seed_rows(bench: Bench, settings: Settings, objective: str, **changes) -> list[Evaluation]:
    """As `row`, each seed on its own."""
    study = settings.finetuning
    seeds = study.seeds if objective in study.seeded else 1
    models = (finetuned(bench, settings, objective, seed=s, **changes).model for s in range(seeds))
    return [_measured(bench, settings, model) for model in models]


def _measured(bench: Bench, settings: Settings, model: StagedViT) -> Evaluation:
    study = settings.finetuning
    suite = replace(settings.suite, columns=study.columns, images=study.images)
    return evaluate_model(model, bench.source, suite, surrogate=bench.surrogate)


def rows(bench: Bench, settings: Settings, objectives: Sequence[str]) -> dict[str, Evaluation]:
    """Rows of several objectives by name, the base model's first; those that the study leaves out are not there."""
    chosen = [o for o in objectives if o in settings.finetuning.objectives]
    return {name: row(bench, settings, name) for name in (BASE, *chosen)}


def eps_sets(bench: Bench, settings: Settings, models: Mapping[str, StagedViT], *, eps: float) -> pd.DataFrame:
    """How far the eps set of each model reaches along fresh directions: noises that no finetuning has seen.

    The noises are learned anew against each model from the same starts; the controls are their permutations and random
    directions. Norms are measured on the reported images.

    Returns:
        columns model, start, noise, norm, gap, reached.
    """
    study = replace(settings.approximate, eps=(eps,), starts=settings.finetuning.fresh, noise=settings.finetune.noise)
    learning, _ = bench.source.take("train", settings.pool + settings.heldout)
    reported, _ = bench.source.take("val", study.reach_images)
    tables = []
    for name, model in models.items():
        pool = make_pool(model, learning, heldout=settings.heldout)
        noises = eps_noises(model, pool, study, seed=settings.seed + _FRESH, stops=("heldout",))
        found = reach_table(model, clean_pass(model, reported), noises, seed=settings.seed + _FRESH)
        tables.append(found.drop(columns="eps").assign(model=name))
    return pd.concat(tables, ignore_index=True)


def fixed_against_early(bench: Bench, settings: Settings) -> list[Estimate]:
    """|Mean difference| between a run whose noises take a fixed number of steps and the early stopped one (claim C19).

    Empty where the study does not run it. In percentage points over the study's columns, with its interval.
    """
    study = settings.finetuning
    if not study.fixed_steps:
        return []
    noise = replace(settings.finetune.noise, eps=None, steps=study.fixed_steps)
    early = row(bench, settings, "nullspace")
    found = mean_difference(row(bench, settings, "nullspace", noise=noise), early, study.columns)
    return [Estimate(abs(found.value), found.low, found.high, found.n)]


def noise_as_paper(cfg: FinetuneConfig) -> bool:
    """Whether noise starts and may go on as in the paper (A = 3, T = 3000), so that claims about both can be judged."""
    return cfg.noise.limit == 3 and cfg.noise.steps >= 3000


def as_paper(cfg: FinetuneConfig) -> bool:
    """Whether rounds and steps are the paper's too (K = 20, S = 40)."""
    return noise_as_paper(cfg) and (cfg.rounds, cfg.steps) == (20, 40)


def whole(settings: Settings) -> bool:
    """Whether claim C11 can be judged: the paper's rounds and steps, and every column of Table 2."""
    return as_paper(settings.finetune) and set(TABLE2) <= set(settings.finetuning.columns)


def rows_table(found: Mapping[str, Evaluation]) -> pd.DataFrame:
    """One line a model, one column a column of Table 2: top-1 in percent, of c the error; beside it the mean.

    The mean takes 100 - c, and only columns that are here: it compares the lines of this table and no others.
    """
    lines = []
    for name, evaluation in found.items():
        columns = [c for c in TABLE2 if c in evaluation.hits]
        line = table2_row(evaluation, columns)
        lines.append({"model": name, **{c: line[c] for c in columns}, "mean": line["average"]})
    return pd.DataFrame(lines)


def column_gains(ours: Evaluation, theirs: Evaluation) -> list[Estimate]:
    """The paired difference of every column that both have, in percentage points."""
    table = differences(ours, theirs)
    return [Estimate(r.difference, r.difference_low, r.difference_high, r.n) for r in table.itertuples()]


def gains_over(found: Mapping[str, Evaluation], reference: str, columns: Sequence[str]) -> pd.DataFrame:
    """Mean difference of every other model to the reference: columns model, difference, difference_low, _high, n."""
    lines = []
    for name, evaluation in found.items():
        if name not in (BASE, reference):
            gain = mean_difference(evaluation, found[reference], columns)
            lines.append({"model": name, "difference": gain.value, "difference_low": gain.low,
                          "difference_high": gain.high, "n": gain.n})  # fmt: skip
    return pd.DataFrame(lines)


def differences_to(found: Mapping[str, Evaluation], reference: str) -> pd.DataFrame:
    """Every model against one of them, column by column on the same images; top-1 in percentage points, also of c."""
    tables = [differences(e, found[reference]).assign(model=name) for name, e in found.items() if name != reference]
    return pd.concat(tables, ignore_index=True)
