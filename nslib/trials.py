"""The rows of the paper's tables: finetuned models side by side, and what the noise adds to the same finetuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import pandas as pd

from nslib.config import TABLE2, FinetuneConfig
from nslib.evaluate.bench import Bench
from nslib.evaluate.comparison import differences, mean_difference, pool_seeds, table2_row
from nslib.evaluate.metrics import corruption_ratio
from nslib.evaluate.suite import Evaluation
from nslib.finetune.objectives import OBJECTIVES
from nslib.intervals import Estimate
from nslib.jobs import BASE, base_row, config_of, eps_set, run
from nslib.profiles import Settings


def row(bench: Bench, settings: Settings, objective: str, *, seeds: int = 0, **changes) -> Evaluation:
    """A model's columns on the study's images; `base` is the model before finetuning, seeds are pooled.

    Args:
        seeds: how many; 0: those of the study for the objectives that it names, else one.
        changes: as in `nslib.jobs.finetuned`; with any there is one seed.
    """
    if objective == BASE:
        return base_row(bench, settings)
    return pool_seeds(seed_rows(bench, settings, objective, seeds=seeds, **changes), objective)


def seed_rows(bench: Bench, settings: Settings, objective: str, *, seeds: int = 0, **changes) -> list[Evaluation]:
    """As `row`, each seed on its own."""
    study = settings.finetuning
    repeated = objective in study.seeded and config_of(settings, objective, **changes) == config_of(settings, objective)
    seeds = seeds or (study.seeds if repeated else 1)
    return [run(bench, settings, objective, seed=seed, **changes).evaluation for seed in range(seeds)]


def rows(bench: Bench, settings: Settings, objectives: Sequence[str]) -> dict[str, Evaluation]:
    """Rows of several objectives by name, the base model's first; those that the study leaves out are not there."""
    chosen = [o for o in objectives if o in settings.finetuning.objectives]
    return {name: row(bench, settings, name) for name in (BASE, *chosen)}


def eps_sets(bench: Bench, settings: Settings, objectives: Sequence[str], *, eps: float) -> pd.DataFrame:
    """The eps sets of several finetuned models, the base model's first: see `nslib.jobs.eps_set`."""
    return pd.concat([eps_set(bench, settings, o, eps=eps) for o in (BASE, *objectives)], ignore_index=True)


def fixed_against_early(bench: Bench, settings: Settings) -> list[Estimate]:
    """|Mean difference| between a run whose noises take a fixed number of steps and the early stopped one (claim C19).

    Empty where the study does not run it. In percentage points over the study's columns, with its interval.
    """
    study = settings.finetuning
    if not study.fixed_steps:
        return []
    noise = replace(settings.finetune.noise, eps=None, steps=study.fixed_steps)
    early = run(bench, settings, "nullspace").evaluation
    found = mean_difference(row(bench, settings, "nullspace", noise=noise), early, study.columns)
    return [found.absolute()]


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

    Where c is made here and the base model has a row, `c / base` is the ratio of the corruption errors to the base
    model's (see `corruption_ratio`). The mean takes 100 - c, and only columns that are here: it compares the lines of
    this table and no others.
    """
    base = found[BASE].hits if BASE in found else {}
    lines = []
    for name, evaluation in found.items():
        columns = [c for c in TABLE2 if c in evaluation.hits]
        line = table2_row(evaluation, columns)
        cells = {"model": name}
        for column in columns:
            cells[column] = line[column]
            if column == "c" and not evaluation.published_c and "c" in base:
                cells[f"c / {BASE}"] = corruption_ratio(evaluation.hits["c"], base["c"])
        lines.append(cells | {"mean": line["average"]})
    return pd.DataFrame(lines)


def with_absent(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `rows_table`, and below it the objectives that this profile leaves out, noted as such."""
    absent = [objective for objective in OBJECTIVES if objective not in set(table.model)]
    return pd.concat([table, pd.DataFrame({"model": absent, "note": "run at full"})], ignore_index=True)


def rows_estimates(found: Mapping[str, Evaluation]) -> pd.DataFrame:
    """The figures behind `rows_table` and those of all other columns, each with its interval, a line a figure.

    Returns:
        columns model, column, measure, value, low, high, n, seeds.
    """
    lines = [
        {"model": name, "column": column, "measure": measure, **asdict(estimate)}
        for name, evaluation in found.items()
        for column, measure, estimate in evaluation.figures()
    ]
    return pd.DataFrame(lines)


def column_gains(ours: Evaluation, theirs: Evaluation) -> list[Estimate]:
    """The paired difference of every column of Table 2 that both have, in percentage points."""
    table = differences(ours, theirs)
    table = table[table.column.isin(TABLE2)]
    return [Estimate(r.difference, r.difference_low, r.difference_high, r.n, r.seeds) for r in table.itertuples()]


def gains_over(found: Mapping[str, Evaluation], reference: str, columns: Sequence[str]) -> pd.DataFrame:
    """Mean difference of every other model to the reference.

    Returns:
        columns model, difference, difference_low, difference_high, n, seeds.
    """
    lines = []
    for name, evaluation in found.items():
        if name not in (BASE, reference):
            gain = mean_difference(evaluation, found[reference], columns)
            lines.append({"model": name, "difference": gain.value, "difference_low": gain.low,
                          "difference_high": gain.high, "n": gain.n, "seeds": gain.seeds})  # fmt: skip
    return pd.DataFrame(lines)


def differences_to(found: Mapping[str, Evaluation], reference: str) -> pd.DataFrame:
    """Every model against one of them, column by column on the same images; top-1 in percentage points, also of c."""
    base = replace(found[reference], model=reference)
    tables = [differences(e, base).assign(model=name) for name, e in found.items() if name != reference]
    return pd.concat(tables, ignore_index=True)
