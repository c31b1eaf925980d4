"""Models side by side: differences on the same images, each with its interval and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from nslib.evaluate.bench import Bench
from nslib.evaluate.metrics import average, corruption_ratio, paired_difference, per_image
from nslib.evaluate.suite import Evaluation, evaluate_model
from nslib.intervals import Estimate

_OF_VAL = ("clean", "fgsm", "pgd", "patchfool", "cw", "autoattack", "damagenet", "c")  # other views of the same images


def differences(ours: Evaluation, base: Evaluation) -> pd.DataFrame:
    """One row for each column that both have: top-1 of ours minus the base's, in percentage points, low, high, p, n.

    Of c it is the top-1 over all corruptions, and beside it stands the ratio of the corruption errors, ours over the
    base's.

    Raises:
        ValueError: c is published in one and made here in the other.
    """
    _check_kinds(ours, base)
    rows = []
    for column in ours.hits:
        if column in base.hits:
            found, p_value = paired_difference(ours.hits[column], base.hits[column])
            row = {
                "column": column,
                "difference": found.value,
                "difference_low": found.low,
                "difference_high": found.high,
            }
            ratio = corruption_ratio(ours.hits["c"], base.hits["c"]) if column == "c" else None
            rows.append(row | {"p": p_value, "n": found.n, "ratio_to_base": ratio})
    return pd.DataFrame(rows)


def pool_seeds(evaluations: Sequence[Evaluation], name: str) -> Evaluation:
    """Several seeds of one method as one: each image's share of seeds that are right, variant by variant.

    Raises:
        ValueError: the seeds were not measured on the same columns and images.
    """
    first = evaluations[0]
    for other in evaluations[1:]:
        if _shapes(other) != _shapes(first):
            raise ValueError(f"seeds of {name} must be measured alike, got {_shapes(first)} and {_shapes(other)}")
    hits = {
        column: {v: np.mean([e.hits[column][v] for e in evaluations], axis=0) for v in variants}
        for column, variants in first.hits.items()
    }
    return Evaluation(name, hits, first.missing, first.published_c)


def _shapes(evaluation: Evaluation) -> dict[str, int]:
    return {f"{c} {v}".strip(): len(h) for c, variants in evaluation.hits.items() for v, h in variants.items()}


def mean_difference(ours: Evaluation, theirs: Evaluation, columns: Sequence[str]) -> Estimate:
    """Mean over columns of the paired difference of top-1, in percentage points; of c that over all corruptions.

    Columns made from the same images (clean, attacked, transferred, corrupted) are averaged image by image first; what
    is left shows different images, so that its errors add up as independent ones, in a normal interval. n counts every
    image once.

    Raises:
        ValueError: no columns, or one that is not in both; c is published in one and made here in the other.
    """
    absent = [c for c in columns if c not in ours.hits or c not in theirs.hits]
    if absent or not columns:
        raise ValueError(f"a mean difference needs columns that both have, lacking are {', '.join(absent) or 'all'}")
    _check_kinds(ours, theirs)
    groups: dict[tuple[str, int], list[np.ndarray]] = {}
    for column in columns:
        difference = 100 * (per_image(ours.hits[column]) - per_image(theirs.hits[column]))
        images = column if column not in _OF_VAL or (column == "c" and ours.published_c) else "val"
        groups.setdefault((images, len(difference)), []).append(difference)
    sums = [np.sum(differences, axis=0) for differences in groups.values()]
    value = float(sum(s.mean() for s in sums)) / len(columns)
    half = 1.96 * float(np.sqrt(sum(s.var(ddof=1) / len(s) for s in sums))) / len(columns)
    return Estimate(value, value - half, value + half, sum(len(s) for s in sums))


def _check_kinds(ours: Evaluation, theirs: Evaluation) -> None:
    if "c" in ours.hits and "c" in theirs.hits and ours.published_c != theirs.published_c:
        raise ValueError("c is ImageNet-C as published in one and made here in the other: the two are never compared")


def table2_row(evaluation: Evaluation, columns: list[str]) -> dict[str, float]:
    """A row of Table 2: what it prints for each column, and the Average over them.

    Raises:
        ValueError: a column was not measured.
    """
    absent = [c for c in columns if c not in evaluation.hits]
    if absent:
        raise ValueError(f"{evaluation.model} has no figure for {', '.join(absent)}: measure these columns first")
    row = {c: evaluation.reported(c)[1].value for c in columns}
    return row | {"average": average(row)}


def compare_protocols(bench: Bench, eps_values: Sequence[float], *, images: int) -> pd.DataFrame:
    """FGSM on the first images of val by both protocols, top-1 in percent: columns eps, pixels, authors, n.

    The authors' budget counts in units of the normalised image, so it is multiplied by the std on the way to pixels.
    """
    rows = []
    for eps in eps_values:
        row = {"eps": f"{eps * 255:.3g}/255"}
        for protocol in ("pixels", "authors"):
            suite = replace(bench.suite, columns=("fgsm",), images=images, fgsm_eps=eps, protocol=protocol)
            found = evaluate_model(bench.model, bench.source, suite, progress=False).estimate("fgsm")
            row |= {protocol: found.value, "n": found.n}
        rows.append(row)
    return pd.DataFrame(rows)
