"""Shape or texture: what a model answers where an image shows both, by the 16-class protocol of Geirhos et al."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from nslib.evaluate.bench import Bench
from nslib.evaluate.metrics import BY_CUE
from nslib.evaluate.suite import evaluate_model


def cue_conflict_table(bench: Bench) -> pd.DataFrame:
    """Share of the suite's images whose decision is the shape, the texture or neither, in percent with intervals.

    Returns:
        columns decision, images, value, low, high, n; or one row that says what is missing.
    Raises:
        FloatingPointError: NaN logits.
    Source: Geirhos et al. 2019, arXiv:1811.12231.
    """
    suite = replace(bench.suite, columns=BY_CUE)
    found = evaluate_model(bench.model, bench.source, suite, progress=False)
    if found.missing:
        return pd.DataFrame([{"decision": "missing", "reason": why} for why in found.missing.values()])
    rows = [
        {"decision": cue, "images": round(share.value * share.n / 100), "value": share.value, "low": share.low,
         "high": share.high, "n": share.n}
        for cue, share in found.decisions().items()
    ]  # fmt: skip
    return pd.DataFrame(rows)
