"""The rows of the paper's tables: finetuned models side by side, and what the noise adds to the same finetuning."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import pandas as pd

from nslib.config import TABLE2
from nslib.evaluate.bench import Bench
from nslib.evaluate.columns import COSTLY
from nslib.evaluate.comparison import differences, mean_difference, pool_seeds, table2_row
from nslib.evaluate.metrics import corruption_ratio
from nslib.evaluate.suite import Evaluation
from nslib.experiment import open_bench
from nslib.finetune.objectives import ADVERSARIAL, OBJECTIVES
from nslib.finetune.result import history_table
from nslib.intervals import Estimate, t_estimate
from nslib.jobs import BASE, Job, base_row, config_of, eps_set, fixed_noise, in_turn, run, wide_row
from nslib.settings import Settings

OF_OTHERS = ("plain", "nullspace")  # with which a profile's further models are finetuned


@dataclass(frozen=True)
class Row(Evaluation):
    """A finetuned model's columns, and in how many of its rounds a noise was outside eps on the held-out images.

    It is the noise that the model was trained with, of `permuted` the permuted one. Seeds are added up.
    """

    noise_rounds: int = 0
    missed_eps: int = 0


def row(bench: Bench, settings: Settings, objective: str, *, seeds: int = 0, **changes) -> Evaluation:
    """A model's columns on the study's images; `base` is the model before finetuning, seeds are pooled.

    Args:
        seeds: how many; 0: those of the study for the objectives that it names, else one.
        changes: as in `nslib.jobs.finetuned`; with any there is one seed.
    """
    if objective == BASE:
        return base_row(bench, settings)
    return pool_rows(seed_rows(bench, settings, objective, seeds=seeds, **changes), objective)


def pool_rows(each: Sequence[Row], name: str) -> Row:
    """Several seeds of one method as one row. Errors as `pool_seeds`."""
    totals = {total: sum(getattr(r, total) for r in each) for total in ("noise_rounds", "missed_eps")}
    return replace(pool_seeds(each, name), **totals)


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
    seeds = seeds or _seeds_of(settings, objective, **changes)
    return [run(bench, settings, objective, seed=seed, **changes) for seed in range(seeds)]


def _seeds_of(settings: Settings, objective: str, **changes) -> int:
    study = settings.finetuning
    repeated = objective in study.seeded and config_of(settings, objective, **changes) == config_of(settings, objective)
    return study.seeds if repeated else 1


def rows(bench: Bench, settings: Settings, objectives: Sequence[str]) -> dict[str, Evaluation]:
    """Rows of several objectives by name, the base model's first; those that the study leaves out are not there."""
    seeds = {o: _seeds_of(settings, o) for o in objectives if o in settings.finetuning.objectives}
    wanted = [(o, seed) for o, count in seeds.items() for seed in range(count)]
    jobs = {(o, seed): run(bench, settings, o, seed=seed) for o, seed in in_turn(bench, settings, wanted)}
    each = {o: [_row_of(jobs[o, s], config_of(settings, o).noise.eps) for s in range(n)] for o, n in seeds.items()}
    return {BASE: row(bench, settings, BASE)} | {o: pool_rows(found, o) for o, found in each.items()}


def of_wide(settings: Settings) -> list[str]:
    """Objectives of the study that have one seed, and those that they are compared with; none where it is not asked."""
    study = settings.finetuning
    single = [o for o in study.objectives if _seeds_of(settings, o) == 1]
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


def eps_sets(bench: Bench, settings: Settings, objectives: Sequence[str], *, eps: float) -> pd.DataFrame:
    """The eps sets of several finetuned models, the base model's first: see `nslib.jobs.eps_set`."""
    return pd.concat([eps_set(bench, settings, o, eps=eps) for o in (BASE, *objectives)], ignore_index=True)


def eps_set_gains(sizes: pd.DataFrame, references: Sequence[str]) -> pd.DataFrame:
    """Of `eps_sets`: how much farther each set reaches than that of a reference, start by start.

    The starts are the same for every model, so that differences are paired; one training seed lies behind each.

    Returns:
        columns noise, model, reference, value (mean over starts), low, high (t interval over starts, NaN of one), n.
    """
    reach = sizes.pivot(index=["noise", "start"], columns="model", values="norm")
    lines = []
    for reference in references:
        for model in reach.columns.drop([reference, BASE], errors="ignore"):
            for noise, paired in (reach[model] - reach[reference]).groupby("noise", sort=False):
                found = t_estimate(paired)
                lines.append({"noise": noise, "model": model, "reference": reference, "value": found.value,
                              "low": found.low, "high": found.high, "n": found.n})  # fmt: skip
    return pd.DataFrame(lines)


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


def shown(found: Mapping[str, Evaluation], columns: Sequence[str]) -> list[str]:
    """Of these columns those that every one of the models has: some need a data set, a library or a surrogate."""
    return [c for c in columns if all(c in evaluation.hits for evaluation in found.values())]


def missed_eps(found: Mapping[str, Evaluation]) -> dict[str, int]:
    """For each model that was trained with noise, in how many rounds a noise was outside eps on held-out images.

    The permuted noise is meant to be, and left out.
    """
    return {name: r.missed_eps for name, r in _noisy(found).items() if name != "permuted"}


def _noisy(found: Mapping[str, Evaluation]) -> dict[str, Row]:
    return {name: r for name, r in found.items() if isinstance(r, Row) and r.noise_rounds}


def rows_table(found: Mapping[str, Evaluation]) -> pd.DataFrame:
    """One line a model, one column a column of Table 2: top-1 in percent, of c the error; beside it the mean.

    `seeds`: over how many it is the mean.

    Where c is made here and the base model has a row, `c / base` is the ratio of the corruption errors to the base
    model's (see `corruption_ratio`). The mean takes 100 - c, and only columns that are here: it compares the lines of
    this table and no others. Where a model was trained with noise, the last column is `missed_eps`.
    """
    base, noisy = found[BASE].hits if BASE in found else {}, _noisy(found)
    lines = []
    for name, evaluation in found.items():
        columns = [c for c in TABLE2 if c in evaluation.hits]
        line = table2_row(evaluation, columns)
        cells = {"model": name, "seeds": evaluation.seeds}
        for column in columns:
            cells[column] = line[column]
            if column == "c" and not evaluation.published_c and "c" in base:
                cells[f"c / {BASE}"] = corruption_ratio(evaluation.hits["c"], base["c"])
        told = f"{evaluation.missed_eps} of {evaluation.noise_rounds} rounds" if name in noisy else ""
        lines.append(cells | {"mean": line["average"]} | ({"missed_eps": told} if noisy else {}))
    return pd.DataFrame(lines)


def with_absent(table: pd.DataFrame, profile: str, models: Sequence[str] = tuple(OBJECTIVES)) -> pd.DataFrame:
    """A table of `rows_table`, and below it those of these models that this profile leaves out, noted as such."""
    absent = [name for name in models if name not in set(table.model)]
    if not absent:
        return table
    noted = pd.DataFrame({"model": absent, "note": "run at full" if profile in ("smoke", "laptop") else "not run"})
    return pd.concat([table, noted], ignore_index=True).astype({"seeds": "Int64"})


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
    for name in [n for n in found if n not in (BASE, reference)]:
        gain = mean_difference(found[name], found[reference], columns)
        lines.append({"model": name, "difference": gain.value, "difference_low": gain.low,
                      "difference_high": gain.high, "n": gain.n, "seeds": gain.seeds})  # fmt: skip
    return pd.DataFrame(lines)


def gains_by_seed(seeds: Mapping[str, Sequence[Row]], reference: str, columns: Sequence[str]) -> pd.DataFrame:
    """`gains_over` of each of the reference's `seed_rows` on its own, among models that have it; with a column seed."""
    each = [{n: rows[i] for n, rows in seeds.items() if rows[i:]} for i in range(len(seeds[reference]))]
    return pd.concat([gains_over(f, reference, columns).assign(seed=i) for i, f in enumerate(each)], ignore_index=True)


def gains_of(found: Mapping[str, Evaluation], model: str, columns: Sequence[str]) -> pd.DataFrame:
    """Mean difference of one model to every other: `gains_over` each of them, named in a column reference."""
    others = [name for name in found if name != model]
    tables = [gains_over({model: found[model], o: found[o]}, o, columns).assign(reference=o) for o in others]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def side_gains(found: Mapping[str, Evaluation], model: str, sides: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """`gains_of` over the columns of each side that has any, named in a column side."""
    tables = [gains_of(found, model, columns).assign(side=side) for side, columns in sides.items() if columns]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"side": []})


def claimed_and_others(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows, by their column model, of learned and random noise and the base model, and as `_others` those of other
    models that were not trained on adversarial images, if there are any."""
    claimed = table.model.isin((BASE, "nullspace", "random"))
    parts = {"": table[claimed], "_others": table[~claimed & ~table.model.isin(ADVERSARIAL)]}
    return {name: rows for name, rows in parts.items() if len(rows)}


def half_widths(against: pd.DataFrame, seeded: Sequence[str]) -> dict[str, float]:
    """The widest half-interval of `differences_to` on columns without a costly attack, in percentage points.

    Args:
        seeded: objectives that may have several seeds.
    Returns:
        of these over images, and over images and seeds; of the others over images.
    """
    cheap = against[~against.column.isin(COSTLY)]
    several = cheap.model.isin(seeded)
    whole = (cheap.difference_high - cheap.difference_low) / 2
    found = {"images": cheap.half_images[several].max(), "images and seeds": whole[several].max(),
             "images, of the other objectives": cheap.half_images[~several].max()}  # fmt: skip
    return {name: float(half) for name, half in found.items() if pd.notna(half)}


def differences_to(
    found: Mapping[str, Evaluation], reference: str, wide: Mapping[str, Evaluation] | None = None
) -> pd.DataFrame:
    """Every model against one of them, column by column on the same images; top-1 in percentage points, also of c.

    Args:
        wide: rows of `wide_rows`, by which models of one seed are compared if they and the reference have one.
    """
    tables, wide = [], wide or {}
    for name in (n for n in found if n != reference):
        pair = wide if found[name].seeds == 1 and {name, reference} <= wide.keys() else found
        tables.append(differences(pair[name], replace(pair[reference], model=reference)).assign(model=name))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
