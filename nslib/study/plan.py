"""The finetuned models that the notebooks of a profile ask for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from nslib.config import FinetuneConfig
from nslib.evaluate.bench import Bench
from nslib.settings import Settings
from nslib.study.jobs import fixed_noise
from nslib.study.traces import TRACED
from nslib.study.trials import OF_OTHERS, seeds_of
from nslib.vit.staged import renormalised

_OF_EPS = ("nullspace", "random")  # measured at every eps of the study
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class Planned:
    """One finetuning, of a model of the settings; `astray`: of that model behind the wrong mean and std."""

    model: str
    objective: str
    seed: int = 0
    changes: dict[str, Any] = field(default_factory=dict)  # of settings.finetune
    astray: bool = False

    def __str__(self) -> str:
        others = ["wrong mean and std"] if self.astray else []
        return f"{self.model}: " + ", ".join([self.objective, *self.changes, *others, f"seed {self.seed}"])


def planned(settings: Settings, *, depth: int) -> list[Planned]:
    """What notebooks 05 to 08, 11 and 13 finetune, each once; the search of 11 apart.

    Args:
        depth: of the first model, in blocks.
    """
    first, *others = settings.models
    study, own = settings.finetuning, settings.finetune
    objectives = dict.fromkeys((*study.objectives, *TRACED))
    found = [Planned(first, o, seed) for o in objectives for seed in range(seeds_of(settings, o))]
    noises = [replace(own.noise, eps=eps) for eps in study.eps if eps != own.noise.eps]
    found += [Planned(first, o, changes={"noise": noise}) for noise in noises for o in _OF_EPS]
    if study.fixed_steps:
        found.append(Planned(first, "nullspace", changes={"noise": fixed_noise(settings)}))
    found += [Planned(first, o, astray=True) for o in OF_OTHERS]
    if study.variants:
        found += [Planned(first, name.split(",")[0], changes=c) for name, c in beyond(own, depth=depth).items()]
    return found + [Planned(other, o) for other in others for o in OF_OTHERS]


def beyond(own: FinetuneConfig, *, depth: int) -> dict[str, dict[str, Any]]:
    """Changes of the recipe that notebook 11 measures, by a name that begins with the objective."""
    embedding = {"trainable": "pos_embed"}
    return {
        "plain, position embedding only": embedding,
        "plain, position embedding, lr x 30": embedding | {"lr": 30 * own.lr, "lr_min": 30 * own.lr_min},
        "nullspace, 4 noises": {"noises": 4, "groups": 1},
        "nullspace, warm start": {"warm_start": 1.2},
        "nullspace, middle block": {"block": depth // 2},
        "nullspace, 2 groups of classes": {"noises": 1, "groups": 2},
    }


def astray(bench: Bench) -> Bench:
    """The same model behind the mean and std of ImageNet instead of its own."""
    return bench.of(renormalised(bench.model, **_IMAGENET))
