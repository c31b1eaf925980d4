"""Two models side by side: differences on the same images, each with its interval and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from nslib.evaluate.bench import Bench
from nslib.evaluate.metrics import average, corruption_ratio, paired_difference
from nslib.evaluate.suite import Evaluation, evaluate_model


def differences(ours: Evaluation, base: Evaluation) -> pd.DataFrame:
    """One row for each column that both have: top-1 of ours minus the base's, in percentage points, low, high, p.

    Of c it is the top-1 over all corruptions, and beside it stands the ratio of the corruption errors.
    """
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
            rows.append(row | {"p": p_value, "ratio_to_base": ratio})
    return pd.DataFrame(rows)


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
