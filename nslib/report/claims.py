"""Verdicts by the rules of data/reference/claims.csv, written down before the first experiment.

Where a rule was changed afterwards its row says when, how, and what it gave before. `not shown` is told apart from
`does not hold` since 2026-11-27; no rule was changed by that.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from nslib.intervals import Estimate
from nslib.runtime import data_path

HOLDS, FAILS, UNSHOWN, UNTESTABLE = "holds", "does not hold", "not shown", "not testable"
_OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le, "==": operator.eq}
_BOUNDS = {"value": "value", "low": "high", "high": "low"}  # each with the other end of the interval


@dataclass(frozen=True)
class Verdict:
    """What became of one part of a claim. The estimate is the one that decided: the worst of those judged.

    One without an interval, such as of a single seed, has no low and high. `of` is what it is of, such as a column,
    where several that have names were judged.
    """

    claim: str
    part: str
    verdict: str
    statistic: str
    rule: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    seeds: int = 0
    of: str = ""


def read_claims() -> pd.DataFrame:
    """The 19 claims of the paper, a row for each part: who judges it, and by which rule.

    The verdict is made in `notebook`, by the cell that calls `record.judge` under the heading `cell`.
    """
    return pd.read_csv(data_path("reference", "claims.csv"), dtype={"part": str}, keep_default_na=False)


Judged = Estimate | Sequence[Estimate] | Mapping[str, Estimate]


def judge(claim: str, part: str, estimates: Judged, *, profile: str) -> Verdict:
    """Apply a claim's written rule to estimates; with several of them it must hold for every one.

    Where the rule asks one end of an interval to lie beyond a threshold and that does not, the claim is `not shown` if
    the other end does, and does not hold if the whole interval lies on the wrong side.

    Args:
        claim: such as `C5`; part: of the claim, as in claims.csv.
        estimates: one, several, or several by name; none at all means not testable with this model or data.
        profile: where the numbers were made; a claim that cannot be tested there is `not testable`.
    Raises:
        KeyError: no such claim or part.
        ValueError: the rule in claims.csv cannot be read, or an estimate is not finite.
    """
    claims = read_claims()
    rows = claims[(claims.claim == claim) & (claims.part == part)]
    if len(rows) != 1:
        known = ", ".join(f"{c}.{p}" for c, p in zip(claims.claim, claims.part, strict=True))
        raise KeyError(f"no claim {claim}.{part} in claims.csv, which holds {known}")
    row = rows.iloc[0]
    if row.bound not in _BOUNDS or row.operator not in _OPERATORS:
        raise ValueError(f"claims.csv, {claim}.{part}: bound must be one of {sorted(_BOUNDS)} and operator one of "
                         f"{sorted(_OPERATORS)}, got {row.bound!r} and {row.operator!r}")  # fmt: skip
    rule = f"{row.bound} {row.operator} {row.threshold:g}"
    named = estimates if isinstance(estimates, Mapping) else {}
    estimates = [estimates] if isinstance(estimates, Estimate) else list(named.values() or estimates)
    if not estimates or profile not in row.profiles.split():
        return Verdict(claim, part, UNTESTABLE, row.statistic, rule)
    if not all(math.isfinite(getattr(e, row.bound)) for e in estimates):
        raise ValueError(f"{claim}.{part} cannot be judged: not every estimate is finite: {estimates}")
    within = _OPERATORS[row.operator]
    missed = [e for e in estimates if not within(getattr(e, row.bound), row.threshold)]
    refuted = [e for e in missed if not within(getattr(e, _BOUNDS[row.bound]), row.threshold)]
    verdict = FAILS if refuted else UNSHOWN if missed else HOLDS
    deciding = refuted or missed or estimates
    worst = max(deciding, key=lambda e: _excess(row.operator, getattr(e, row.bound), row.threshold))
    low, high = (None if math.isnan(end) else end for end in (worst.low, worst.high))
    of = next((name for name, e in named.items() if e is worst), "")
    return Verdict(claim, part, verdict, row.statistic, rule, worst.value, low, high, worst.n, worst.seeds, of)


def _excess(op: str, value: float, threshold: float) -> float:
    """How far a value lies on the wrong side: the largest decides."""
    if op == "==":
        return abs(value - threshold)
    return threshold - value if op.startswith(">") else value - threshold
