"""Approximate nullspaces of vision transformers (arXiv:2403.10476): find them, learn them, finetune with them.

What a notebook or a user calls is exported here and imported when it is first needed, so that `import nslib` is quick.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "StagedViT": "nslib.vit.staged",
    "load_model": "nslib.models",
    "PatchNullspace": "nslib.nullspace.patch",
    "NoiseConfig": "nslib.config",
    "resolve": "nslib.profiles",
    "LearnedNoise": "nslib.nullspace.encoder",
    "learn_noise": "nslib.nullspace.encoder",
    "agreement": "nslib.nullspace.membership",
    "boundary_scale": "nslib.nullspace.membership",
    "clean_pass": "nslib.nullspace.membership",
    "make_pool": "nslib.nullspace.membership",
    "match_rate": "nslib.nullspace.membership",
    "noise_gap": "nslib.nullspace.membership",
    "permute": "nslib.nullspace.membership",
    "random_noise_at": "nslib.nullspace.membership",
    "render": "nslib.data.shapes",
    "DataConfig": "nslib.config",
    "open_source": "nslib.data.source",
    "DatasetSource": "nslib.data.datasets",
    "SuiteConfig": "nslib.config",
    "evaluate_model": "nslib.evaluate.suite",
    "Evaluation": "nslib.evaluate.suite",
    "FinetuneConfig": "nslib.config",
    "finetune_model": "nslib.finetune.rounds",
    "compare_protocols": "nslib.evaluate.comparison",
    "differences": "nslib.evaluate.comparison",
    "paired_difference": "nslib.evaluate.metrics",
    "open_bench": "nslib.study.experiment",
    "Record": "nslib.report.record",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"nslib has no {name!r}; it exports {', '.join(_HOME)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
