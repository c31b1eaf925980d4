"""What each column looks like: a few images as the model sees them, with its answers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nslib.evaluate.bench import Bench
from nslib.evaluate.columns import COLUMNS, Part, missing_of
from nslib.evaluate.metrics import BY_CUE


class Example(NamedTuple):
    """Images (B, C, H, W) in [0, 1] and labels and predictions (B,), on the CPU."""

    images: Tensor
    labels: Tensor
    predictions: Tensor


_OF_C = "fog", 3  # which corruption is shown, and how severe


def column_examples(bench: Bench, count: int) -> dict[str, Example]:
    """The first images of every column of the suite that is not missing; of c in fog of severity 3.

    cue_conflict is left out: its images have two answers, and labels that are no classes of the model.
    """
    found = {}
    corruption, severity = _OF_C
    for name in bench.suite.columns:
        column = COLUMNS[name]
        if name in BY_CUE or missing_of(name, bench):
            continue
        part = Part(name, corruption if name == "c" else "", 0, int(min(count, bench.count(column.split))))
        views = {view.variant: view for view in column.show(bench, part)}
        _, images, labels = views[f"{corruption}/{severity}" if name == "c" else ""]
        with torch.inference_mode():
            predictions = bench.logits(images, column.split).argmax(1)
        found[name] = Example(images.cpu(), labels.cpu(), predictions.cpu())
    return found
