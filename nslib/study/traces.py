"""What is measured of a model after every round of its finetuning: the curves of Figure 4."""

from __future__ import annotations

from typing import Any

from nslib.config import SuiteConfig
from nslib.evaluate.bench import Bench
from nslib.evaluate.columns import COLUMNS
from nslib.evaluate.suite import VERSION as EVALUATION_VERSION
from nslib.evaluate.suite import evaluate_model
from nslib.settings import Settings
from nslib.vit.staged import StagedViT

TRACED = ("nullspace", "plain", "random")  # objectives of Fig. 4
SHIFTED = ("a", "v2", "r", "sketch", "stylized")


def trace_suite(settings: Settings) -> SuiteConfig:
    """What is measured after every round of the objectives in `TRACED`."""
    return SuiteConfig(**_asked(settings))


def traced(bench: Bench, settings: Settings, model: StagedViT) -> dict[str, float]:
    """Clean, adversarial and, where the data has them, shifted top-1 of a model, in percent."""
    found = evaluate_model(model, bench.source, trace_suite(settings), progress=False)
    values = {"clean": found.estimate("clean").value, "adversarial": found.estimate("fgsm").value}
    shifted = [found.estimate(c).value for c in SHIFTED if c in found.hits]
    return values | ({"shifted": sum(shifted) / len(shifted)} if shifted else {})


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
