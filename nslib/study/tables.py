"""Finetuned models side by side: their rows as a table, and what one of them gains over another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product

import numpy as np
import pandas as pd

from nslib.config import TABLE2
from nslib.evaluate.columns import COSTLY
from nslib.evaluate.comparison import differences, mean_difference, pool_seeds, table2_row
from nslib.evaluate.metrics import corruption_ratio
from nslib.evaluate.suite import Evaluation
from nslib.finetune.objectives import ADVERSARIAL, OBJECTIVES
from nslib.intervals import Estimate, crossed_spread
from nslib.study.jobs import BASE


@dataclass(frozen=True)
class Row(Evaluation):
    """A finetuned model's columns, and in how many of its rounds a noise was outside eps on the held-out images.

    It is the noise that the model was trained with, of `permuted` the permuted one. Seeds are added up.
    """

    noise_rounds: int = 0
    missed_eps: int = 0


def pool_rows(each: Sequence[Row], name: str) -> Row:
    """Several seeds of one method as one row. Errors as `pool_seeds`."""
    totals = {total: sum(getattr(r, total) for r in each) for total in ("noise_rounds", "missed_eps")}
    return replace(pool_seeds(each, name), **totals)


def shown(found: Mapping[str, Evaluation], columns: Sequence[str]) -> list[str]:
    """Of these columns those that every one of the models has: some need a data set, a library or a surrogate."""
    return [c for c in columns if all(c in evaluation.hits for evaluation in found.values())]


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
        line = table2_row(evaluation)
        cells = {"model": name, "seeds": evaluation.seeds}
        for column in (c for c in TABLE2 if c in line):
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


def missed_eps(found: Mapping[str, Evaluation]) -> dict[str, int]:
    """For each model that was trained with noise, in how many rounds a noise was outside eps on held-out images.

    The permuted noise is meant to be, and that which its batch stops may be: both are left out.
    """
    may = ("permuted", "nullspace_by_batch")
    return {name: r.missed_eps for name, r in _noisy(found).items() if name not in may}


def _noisy(found: Mapping[str, Evaluation]) -> dict[str, Row]:
    return {name: r for name, r in found.items() if isinstance(r, Row) and r.noise_rounds}


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


def column_gains(ours: Evaluation, theirs: Evaluation) -> dict[str, Estimate]:
    """The paired difference of every column of Table 2 that both have, in percentage points."""
    table = differences(ours, theirs)
    told = table[table.column.isin(TABLE2)].itertuples()
    return {r.column: Estimate(r.difference, r.difference_low, r.difference_high, r.n, r.seeds) for r in told}


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
    claimed = table.model.isin((BASE, "nullspace", "nullspace_by_batch", "random"))
    parts = {"": table[claimed], "_others": table[~claimed & ~table.model.isin(ADVERSARIAL)]}
    return {name: rows for name, rows in parts.items() if len(rows)}


def half_widths(against: pd.DataFrame, seeded: Sequence[str]) -> dict[str, float]:
    """The widest half-interval of `differences_to` on columns without a costly attack, in percentage points.

    Args:
        seeded: objectives that may have several seeds.
    Returns:
        of these over images, and over images and seeds; of the others over images.
    """
    cheap = against[~against.column.isin(COSTLY) & (against.model != BASE)]
    several = cheap.model.isin(seeded)
    whole = (cheap.difference_high - cheap.difference_low) / 2
    found = {"images": cheap.half_images[several].max(), "images and seeds": whole[several].max(),
             "images, of the other objectives": cheap.half_images[~several].max()}  # fmt: skip
    return {name: float(half) for name, half in found.items() if pd.notna(half)}


def eps_set_gains(sizes: pd.DataFrame, references: Sequence[str]) -> pd.DataFrame:
    """Of `eps_sets`: how much farther each set reaches than that of a reference, start by start and block by block.

    Starts and blocks of images are the same for every model, so that differences are paired; and so are seeds of
    training, of which a model with one is compared with the first. The base model is compared with all, and a reference
    with those before it.

    Returns:
        columns noise, model, reference, value (mean over all), low, high (of `crossed_spread`: over those of seeds,
        blocks and starts of which there are several), n (starts), blocks, seeds.
    """
    lines = []
    for (i, reference), model, noise in product(enumerate(references), sizes.model.unique(), sizes.noise.unique()):
        if model in (*references[: i + 1], BASE):
            continue
        ours, theirs = (_norms(sizes, noise, name) for name in (model, reference))
        seeds = len(ours) if reference == BASE else min(len(ours), len(theirs))
        gains = ours[:seeds] - theirs[:seeds]
        _, blocks, starts = gains.shape
        found = crossed_spread(gains).estimate(float(gains.mean()), n=starts, seeds=seeds)
        lines.append({"noise": noise, "model": model, "reference": reference, **asdict(found), "blocks": blocks})
    return pd.DataFrame(lines)


def _norms(sizes: pd.DataFrame, noise: str, model: str) -> np.ndarray:
    """(seeds, blocks, starts)."""
    rows = sizes[(sizes.noise == noise) & (sizes.model == model)].sort_values(["seed", "block", "start"])
    return rows.norm.to_numpy().reshape(rows.seed.nunique(), rows.block.nunique(), -1)
