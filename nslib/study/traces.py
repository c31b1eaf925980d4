"""What is measured in every round of a finetuning: of the model for Figure 4, and what its noise does elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nslib.checks import require
from nslib.config import SuiteConfig
from nslib.data.shapes import Batch
from nslib.data.source import checked
from nslib.evaluate.bench import Bench
from nslib.evaluate.columns import COLUMNS
from nslib.evaluate.suite import VERSION as EVALUATION_VERSION
from nslib.evaluate.suite import evaluate_model
from nslib.nullspace.membership import agreement, clean_pass
from nslib.settings import Settings
from nslib.store import timeless
from nslib.vit.staged import StagedViT

TRACED = ("nullspace", "plain", "random")  # objectives of Fig. 4
INFLUENCED = ("nullspace", "nullspace_by_batch")  # whose noise is followed beyond the images that stop it, Table 5
SHIFTED = ("a", "v2", "r", "sketch", "stylized")
_MOST_INFLUENCED = 1000  # images, which stay in memory through all rounds
_INFLUENCE_VERSION = 1


def trace_suite(settings: Settings) -> SuiteConfig:
    """What is measured after every round of the objectives in `TRACED`."""
    return SuiteConfig(**_asked(settings))


def traced(bench: Bench, settings: Settings, model: StagedViT) -> dict[str, float]:
    """Clean, adversarial and, where the data has them, shifted top-1 of a model, in percent."""
    found = evaluate_model(model, bench.source, trace_suite(settings), progress=False)
    values = {"clean": found.estimate("clean").value, "adversarial": found.estimate("fgsm").value}
    shifted = [found.estimate(c).value for c in SHIFTED if c in found.hits]
    return values | ({"shifted": sum(shifted) / len(shifted)} if shifted else {})


def influence(model: StagedViT, shown: Batch, noises: Tensor, *, groups: int = 1, batch: int = 128) -> dict[str, float]:
    """What the noises (n, N, D) of a round do to images that had no say in learning or stopping them.

    Args:
        groups: above 1 each image is given the noise of its group of classes, see `find_noises`, else each noise.
    Returns:
        gap (mean over images of the squared l2 gap between softmax vectors, of several noises their mean), gap_error
        (its standard error over images), match (share of predictions that stay), n (images).
    """
    each = []
    for images, labels in zip(shown.images.split(batch), shown.labels.split(batch), strict=True):
        clean = clean_pass(model, images.to(model.device))
        found = [agreement(model, clean, noise[None]) for noise in noises]
        values = torch.stack([torch.stack([one.gap, one.match.to(one.gap)]) for one in found]).float().cpu()
        own = (labels.cpu() % groups)[None, None].expand(1, 2, -1)
        each.append(values.mean(0) if groups == 1 else values.gather(0, own)[0])
    gap, match = torch.cat(each, dim=1)
    error = gap.std(correction=min(1, len(gap) - 1)) / len(gap) ** 0.5
    return {"gap": gap.mean().item(), "gap_error": error.item(), "match": match.mean().item(), "n": len(gap)}


def influenced(bench: Bench, settings: Settings) -> Batch:
    """The images of val for `influence`: the first of those that are reported."""
    first, count = _influenced(bench, settings)
    return checked(bench.source.take("val", count, start=first), count, bench.model)


def influence_key(bench: Bench, settings: Settings) -> dict[str, Any]:
    """By what `influence` is told apart."""
    first, count = _influenced(bench, settings)
    return {"version": _INFLUENCE_VERSION, "first": first, "n": count, "images": timeless(bench.identity("val"))}


def _influenced(bench: Bench, settings: Settings) -> tuple[int, int]:
    first, end = settings.suite.first, bench.source.count("val")
    require(end is None or first < end, "suite.first", f"below {end}, the images of val", first)
    count = min(settings.finetuning.images, _MOST_INFLUENCED)
    return first, count if end is None else min(count, end - first)


def trace_key(settings: Settings) -> dict[str, Any]:
    """By which settings traces are told apart: the batch may be lowered for memory, and no column draws by the seed."""
    shown = {name: value for name, value in _asked(settings).items() if name != "batch"}
    return shown | {"seed": SuiteConfig.seed}


def traced_inputs(bench: Bench, settings: Settings) -> list[Any]:
    """On what else traces depend, which lie in the store with the model: images, and how they are measured."""
    shown = [COLUMNS[name] for name in trace_suite(settings).columns]
    images = [bench.identity(split) for column in shown for split in bench.reads(column.split)]
    return [EVALUATION_VERSION, [column.version for column in shown], images]


def _asked(settings: Settings) -> dict[str, Any]:
    """Of the suite what these columns take and nothing else: the rest may change without training anew."""
    columns = ("clean", "fgsm", *(c for c in SHIFTED if settings.data.kind == "shapes"))
    same = {name: getattr(settings.suite, name) for name in ("batch", "fgsm_eps", "protocol")}
    return {"columns": columns, "images": settings.finetuning.trace_images, **same}
