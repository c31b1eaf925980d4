"""Models side by side: differences on the same images, each with its interval and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from nslib.config import TABLE2
from nslib.evaluate.bench import MADE_HERE, PUBLISHED, Bench
from nslib.evaluate.columns import BESIDE, COLUMNS
from nslib.evaluate.metrics import (
    BY_CUE,
    average,
    corruption_ratio,
    image_differences,
    images_half,
    paired_difference,
)
from nslib.evaluate.suite import Evaluation, evaluate_model
from nslib.intervals import Estimate, Spread, spread_of_seeds

_OF_VAL = (*(name for name, column in COLUMNS.items() if column.split == "val"), *MADE_HERE)  # views of the same images


def differences(ours: Evaluation, base: Evaluation) -> pd.DataFrame:
    """One row for each column that both have: top-1 of ours minus the base's, in percentage points, low, high, p, n.

    `half_images` is half the width of the interval of these seeds, over images alone: the whole one also tells how far
    other seeds may fall, and of three seeds that is most of it.

    Of c it is the top-1 over all corruptions, and beside it stands the ratio of the corruption errors, ours over the
    base's, in a column that names it, such as `ratio to plain`. Decisions by cue are no top-1 and left out.

    Raises:
        ValueError: c is published in one and made here in the other, or as `paired_difference`.
    """
    _check_kinds(ours, base)
    ours, base = seed_by_seed(ours, base)
    rows, ratio = [], f"ratio to {base.model}"
    for column in (c for c in ours.hits if c in base.hits and c not in BY_CUE):
        mine, theirs = ours.hits[column], base.hits[column]
        found, p_value = paired_difference(mine, theirs)
        rows.append({"column": column, "difference": found.value, "difference_low": found.low,
                     "difference_high": found.high, "half_images": images_half(mine, theirs), "p": p_value,
                     "n": found.n, "seeds": found.seeds,
                     ratio: corruption_ratio(mine, theirs) if column == "c" else None})  # fmt: skip
    bounds = ["difference", "difference_low", "difference_high", "half_images"]
    return pd.DataFrame(rows, columns=["column", *bounds, "p", "n", "seeds", ratio])


def pool_seeds(evaluations: Sequence[Evaluation], name: str) -> Evaluation:
    """Several seeds of one method as one evaluation, whose hits (S, n) keep them apart, so that intervals know both.

    Raises:
        ValueError: the seeds were not measured on the same columns and images.
    """
    first = evaluations[0]
    for other in evaluations[1:]:
        if _shapes(other) != _shapes(first):
            raise ValueError(f"seeds of {name} must be measured alike, got {_shapes(first)} and {_shapes(other)}")
    if len(evaluations) == 1:
        return replace(first, model=name)
    hits = {
        column: {v: np.stack([e.hits[column][v] for e in evaluations]) for v in variants}
        for column, variants in first.hits.items()
    }
    return replace(first, model=name, hits=hits)


def _shapes(evaluation: Evaluation) -> dict[str, tuple[int, ...]]:
    return {f"{c} {v}".strip(): h.shape for c, variants in evaluation.hits.items() for v, h in variants.items()}


def mean_difference(ours: Evaluation, theirs: Evaluation, columns: Sequence[str]) -> Estimate:
    """Mean over columns of the paired difference of top-1, in percentage points; of c that over all corruptions.

    Columns made from the same images (clean, attacked, transferred, corrupted) are averaged image by image first, one
    that shows only the first n_c of them with weight n / n_c there and 0 on the others, which never narrows it. Sets
    published as made from val (ImageNet-C, DAmageNet, Stylized-ImageNet) and parts of val (clean_a, clean_r) show its
    images in an order of their own: which they share is not known, and their errors add up as if all were the same.
    What is left shows different images, so that its errors add up as independent ones, in a normal interval. n counts
    every image once. Several seeds are paired as in `paired_difference`, in an interval by `spread_of_seeds`. The
    images of a column on which few or none differ do not make it certain: as in `difference_estimate`, each column has
    one won and one lost image more in the interval, which adds 2 / n_c^2 to the squared error of its mean.

    Raises:
        ValueError: no columns, one that is not in both, or one of decisions by cue; c is published in one and made here
            in the other; seeds that cannot be paired.
    """
    absent = [c for c in columns if c not in ours.hits or c not in theirs.hits]
    if absent or not columns:
        raise ValueError(f"a mean difference needs columns that both have, lacking are {', '.join(absent) or 'all'}")
    cues = [c for c in columns if c in BY_CUE]
    if cues:
        raise ValueError(f"a mean difference is of top-1, {', '.join(cues)} has decisions by cue: leave it out")
    _check_kinds(ours, theirs)
    ours, theirs = seed_by_seed(ours, theirs)
    of_val: dict[str, list[np.ndarray]] = {}
    others: dict[str, list[np.ndarray]] = {}
    unseen = 0.0
    for column in columns:
        difference = 100 * image_differences(ours.hits[column], theirs.hits[column])
        published = ours.published_c if column == "c" else ours.sources.get(column, "").endswith(PUBLISHED)
        kind = of_val if published or column in (*_OF_VAL, *BESIDE.values()) else others
        kind.setdefault("val" if column in _OF_VAL and not published else column, []).append(difference)
        unseen += 2 * (100 / difference.shape[-1]) ** 2
    groups = [*of_val.values(), *others.values()]
    sums = [_image_sums(differences) for differences in groups]
    value = float(sum(s.mean() for s in sums)) / len(columns)
    n = sum(s.shape[-1] for s in sums)
    if sums[0].ndim == 2:
        errors = _added_up(spread_of_seeds(*(s / len(columns) for s in sums)).sources, len(of_val))
        return Spread((*errors, (unseen**0.5 / len(columns), n))).estimate(value, n=n, seeds=len(sums[0]))
    apart = [s.std(ddof=1) if len(s) > 1 else 100 * len(g) for s, g in zip(sums, groups, strict=True)]  # one: any
    errors = _added_up([(a / len(s) ** 0.5, len(s) - 1) for a, s in zip(apart, sums, strict=True)], len(of_val))
    half = 1.96 * float(np.sqrt(sum(error**2 for error, _ in errors) + unseen)) / len(columns)
    return Estimate(value, value - half, value + half, n)


def _added_up(sources: Sequence[tuple[float, int]], same: int) -> list[tuple[float, int]]:
    """Standard errors with degrees of freedom, the first of which may be of the same images: their sum bounds them."""
    first, others = sources[:same], sources[same:]
    return [*([(sum(e for e, _ in first), min(f for _, f in first))] if first else []), *others]


def seed_by_seed(ours: Evaluation, theirs: Evaluation) -> tuple[Evaluation, Evaluation]:
    """The two with seeds that can be compared: of one seed against several, only the first of these.

    A model without luck of its own, such as the one before finetuning, is compared with all of them.
    """
    if ours.seeds == 1 and not ours.fixed:
        theirs = theirs.first_seed()
    elif theirs.seeds == 1 and not theirs.fixed:
        ours = ours.first_seed()
    return ours, theirs


def _image_sums(differences: Sequence[np.ndarray]) -> np.ndarray:
    """Values (n,) or (S, n) whose mean is the sum of the columns' means; a column may have the first images alone."""
    n = max(d.shape[-1] for d in differences)
    reach = [[(0, 0)] * (d.ndim - 1) + [(0, n - d.shape[-1])] for d in differences]
    return np.sum([np.pad(d * n / d.shape[-1], r) for d, r in zip(differences, reach, strict=True)], axis=0)


def _check_kinds(ours: Evaluation, theirs: Evaluation) -> None:
    if "c" in ours.hits and "c" in theirs.hits and ours.published_c != theirs.published_c:
        raise ValueError("c is ImageNet-C as published in one and made here in the other: the two are never compared")


def table2_row(evaluation: Evaluation) -> dict[str, float]:
    """A row of Table 2: what it prints for each of its columns that was measured, and the average over these."""
    row = {c: evaluation.reported(c)[1].value for c in TABLE2 if c in evaluation.hits}
    return row | {"average": average(row)}


def compare_protocols(bench: Bench, eps_values: Sequence[float], *, images: int) -> pd.DataFrame:
    """FGSM on the first images of val by both protocols, top-1 in percent.

    The authors' budget counts in units of the normalised image, so it is multiplied by the std on the way to pixels.

    Returns:
        columns eps, pixels, pixels_low, pixels_high, authors, authors_low, authors_high, n.
    """
    rows = []
    for eps in eps_values:
        row = {"eps": f"{eps * 255:.3g}/255"}
        for protocol in ("pixels", "authors"):
            suite = replace(bench.suite, columns=("fgsm",), images=images, fgsm_eps=eps, protocol=protocol)
            found = evaluate_model(bench.model, bench.source, suite, progress=False).estimate("fgsm")
            row |= {protocol: found.value, f"{protocol}_low": found.low, f"{protocol}_high": found.high}
        rows.append(row | {"n": found.n})
    return pd.DataFrame(rows)
