"""The rows of the paper's tables: which finetuned models, how many seeds of each, and what a profile makes of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from nslib.evaluate.bench import Bench
from nslib.evaluate.comparison import mean_difference
from nslib.evaluate.suite import Evaluation
from nslib.finetune.result import history_table
from nslib.intervals import Estimate
from nslib.settings import Settings
from nslib.study.beside import eps_set, influence_of_rounds
from nslib.study.experiment import open_bench
from nslib.study.jobs import BASE, Job, base_row, config_of, fixed_noise, in_turn, run, wide_row
from nslib.study.tables import Row, pool_rows, shown
from nslib.study.traces import INFLUENCED, TRACED

OF_OTHERS = ("plain", "nullspace")  # with which a profile's further models are finetuned


def row(bench: Bench, settings: Settings, objective: str, *, seeds: int = 0, **changes) -> Evaluation:
    """A model's columns on the study's images; `base` is the model before finetuning, seeds are pooled.

    Args:
        seeds: how many; 0: those of the study for the objectives that it names, else one.
        changes: as in `nslib.study.jobs.finetuned`; with any there is one seed.
    """
    if objective == BASE:
        return base_row(bench, settings)
    return pool_rows(seed_rows(bench, settings, objective, seeds=seeds, **changes), objective)


def seed_rows(bench: Bench, settings: Settings, objective: str, *, seeds: int = 0, **changes) -> list[Row]:
    """As `row`, each seed on its own."""
    eps = config_of(settings, objective, **changes).noise.eps
    return [_row_of(job, eps) for job in seed_jobs(bench, settings, objective, seeds, **changes)]


def _row_of(job: Job, eps: float | None) -> Row:
    noisy = [r.noises for r in job.history if r.noises]
    outside = sum(any(eps is not None and noise.gap_heldout >= eps for noise in noises) for noises in noisy)
    return Row(**vars(job.evaluation), noise_rounds=len(noisy), missed_eps=outside)


def seed_rounds(bench: Bench, settings: Settings, objective: str) -> pd.DataFrame:
    """The rounds of an objective under each seed of the study: `history_table` with a column seed."""
    each = enumerate(seed_jobs(bench, settings, objective))
    return pd.concat([history_table(job.history).assign(seed=seed) for seed, job in each], ignore_index=True)


def seed_jobs(bench: Bench, settings: Settings, objective: str, seeds: int = 0, **changes) -> list[Job]:
    """The runs of each seed; arguments as of `row`."""
    seeds = seeds or seeds_of(settings, objective, **changes)
    return [run(bench, settings, objective, seed=seed, **changes) for seed in range(seeds)]


def seeds_of(settings: Settings, objective: str, **changes) -> int:
    """How many seeds the study gives a recipe: several where it names the objective and nothing is changed."""
    study = settings.finetuning
    repeated = objective in study.seeded and config_of(settings, objective, **changes) == config_of(settings, objective)
    return study.seeds if repeated else 1


def rows(bench: Bench, settings: Settings, objectives: Sequence[str]) -> dict[str, Evaluation]:
    """Rows of several objectives by name, the base model's first; those that the study leaves out are not there."""
    seeds = {o: seeds_of(settings, o) for o in objectives if o in settings.finetuning.objectives}
    wanted = [(o, seed) for o, count in seeds.items() for seed in range(count)]
    made = {
        (o, seed): _row_of(run(bench, settings, o, seed=seed), config_of(settings, o).noise.eps)
        for o, seed in in_turn(bench, settings, wanted)
    }
    pooled = {o: pool_rows([made[o, seed] for seed in range(count)], o) for o, count in seeds.items()}
    return {BASE: base_row(bench, settings)} | pooled


def of_wide(settings: Settings) -> list[str]:
    """Objectives of the study that have one seed, and those that they are compared with; none where it is not asked."""
    study = settings.finetuning
    single = [o for o in study.objectives if seeds_of(settings, o) == 1]
    return [o for o in study.objectives if o in {*OF_OTHERS, *single}] if single and study.wide_images else []


def wide_rows(bench: Bench, settings: Settings, objectives: Collection[str]) -> dict[str, Evaluation]:
    """Rows of these objectives if they are among `of_wide`: the first seed's, on `settings.finetuning.wide_images`.

    Columns with costly attacks are those of `rows`.
    """
    found = {}
    for name in (o for o in of_wide(settings) if o in objectives):
        first = row(bench, settings, name, seeds=1)
        found[name] = replace(first, hits=first.hits | wide_row(bench, settings, name).hits)
    return found


def other_models(settings: Settings) -> dict[str, Evaluation]:
    """Base, plain and NS rows of the settings' other models, one seed each, as `<model> <objective>`."""
    found = {}
    for name in settings.models[1:]:
        bench = open_bench(settings, name)
        for objective in (BASE, *OF_OTHERS):
            found[f"{name} {objective}"] = row(bench, settings, objective, seeds=1)
    return {told: replace(evaluation, model=told) for told, evaluation in found.items()}


def costs(bench: Bench, settings: Settings, objectives: Sequence[str]) -> pd.DataFrame:
    """Forward passes of one image that each run took, seed by seed.

    Returns:
        columns objective, seed, noise, updates, share (of noise), images (of standard training that cost as much).
    """
    lines = []
    for name in objectives:
        for seed, job in enumerate(seed_jobs(bench, settings, name)):
            noise, updates = job.cost["units"]["noise"], job.cost["units"]["updates"]
            spent = {"noise": noise, "updates": updates, "share": noise / (noise + updates)}
            images = job.cost["images_of_standard_training"]
            lines.append({"objective": name, "seed": seed, **spent, "images": images})
    return pd.DataFrame(lines)


def of_eps_sets(settings: Settings) -> list[str]:
    """Objectives whose eps sets notebook 05 measures, beside the base model's."""
    return [*dict.fromkeys((*TRACED, *of_influences(settings)))]


def influences(bench: Bench, settings: Settings, objectives: Sequence[str]) -> pd.DataFrame:
    """What the noise of each round does to images that did not stop its search, under each seed of the study.

    Returns:
        as `nslib.study.beside.influence_of_rounds`, with columns objective and seed.
    """
    each = [
        influence_of_rounds(bench, settings, o, seed=seed).assign(objective=o, seed=seed)
        for o in objectives
        for seed in range(seeds_of(settings, o))
    ]
    return pd.concat(each, ignore_index=True)


def of_influences(settings: Settings) -> list[str]:
    """Objectives of which `influences` are asked in 05, those of the study."""
    return [o for o in INFLUENCED if o in settings.finetuning.objectives]


def eps_sets(
    bench: Bench, settings: Settings, variants: Mapping[str, Mapping[str, Any]], *, eps: float, blocks: int = 1
) -> pd.DataFrame:
    """The eps sets of several finetuned models, of every seed, the base model's first: `nslib.study.beside.eps_set`.

    Args:
        variants: changes of the recipe, by a name that begins with the objective, as of `nslib.study.plan.beyond`.
    Returns:
        columns model (the name), seed, block, start, noise, norm, gap, reached.
    """
    each = []
    for name, changes in {BASE: {}, **variants}.items():
        objective = name.split(",")[0]
        for seed in range(seeds_of(settings, objective, **changes)):
            sizes = eps_set(bench, settings, objective, eps=eps, seed=seed, blocks=blocks, **changes).assign(model=name)
            sizes.insert(1, "seed", seed)
            each.append(sizes)
    return pd.concat(each, ignore_index=True)


def fixed_against_early(bench: Bench, settings: Settings) -> list[Estimate]:
    """|Mean difference| between a run whose noises take a fixed number of steps and the early stopped one (claim C19).

    Empty where the study does not run it. In percentage points over the study's columns, with its interval.
    """
    study = settings.finetuning
    if not study.fixed_steps:
        return []
    early = run(bench, settings, "nullspace").evaluation
    fixed = row(bench, settings, "nullspace", noise=fixed_noise(settings))
    return [mean_difference(fixed, early, shown({"fixed": fixed, "early": early}, study.columns)).absolute()]
