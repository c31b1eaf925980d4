"""Shape or texture: what a model answers where an image shows both, by the 16-class protocol of Geirhos et al."""

from __future__ import annotations

import pandas as pd

from nslib.evaluate.bench import Bench
from nslib.intervals import share_estimate


def cue_conflict_table(bench: Bench) -> pd.DataFrame:
    """Share of images whose decision is the shape, the texture or neither, in percent with intervals.

    Returns:
        columns decision, images, value, low, high, n; or one row that says what is missing.
    Raises:
        FloatingPointError: NaN logits.
    Source: Geirhos et al. 2019, arXiv:1811.12231.
    """
    missing = bench.missing("cue_conflict")
    if missing:
        return pd.DataFrame([{"decision": "missing", "reason": missing}])
    conflict = bench.source.open("cue_conflict")
    counts = {"shape": 0, "texture": 0, "other": 0}
    for start in range(0, len(conflict), bench.suite.batch):
        images, labels = bench.take("cue_conflict", start, min(start + bench.suite.batch, len(conflict)))
        found = conflict.count(bench.logits(images, labels, "cue_conflict").cpu(), labels.cpu())
        for decision in counts:
            counts[decision] += getattr(found, decision)
    rows = []
    for decision, images in counts.items():
        share = share_estimate([1.0] * images + [0.0] * (len(conflict) - images))
        rows.append({"decision": decision, "images": images, "value": 100 * share.value, "low": 100 * share.low,
                     "high": 100 * share.high, "n": share.n})  # fmt: skip
    return pd.DataFrame(rows)
