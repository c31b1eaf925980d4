"""The finetuned models that the notebooks of a profile ask for, and how to make them beforehand, many at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from nslib.config import FinetuneConfig
from nslib.evaluate.bench import Bench
from nslib.finetune.objectives import ADVERSARIAL
from nslib.machine.workers import KILLED, threads, workers
from nslib.runtime import pick_device
from nslib.settings import Settings
from nslib.study.experiment import open_bench, open_model, open_stranger
from nslib.study.jobs import finetuned, fixed_noise, run, strength, wide_row
from nslib.study.traces import TRACED
from nslib.study.trials import OF_OTHERS, of_wide, seeds_of
from nslib.vit.staged import renormalised

_OF_EPS = ("nullspace", "random")  # measured at every eps of the study
_ATTACKED = (*OF_OTHERS, *ADVERSARIAL)  # by 07, against the strength of an attack
_ON_A_GPU = 4  # processes, by default: each holds its own model and images there
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


def prepare(settings: Settings, *, jobs: int = 0) -> list[str]:
    """Train, finetune and measure all models of a profile's notebooks but those of the search of 11.

    The notebooks then find them made; eps sets and the base model's rows are left to them. What is there already is not
    made again, and what was stopped goes on. A line is printed for each.

    Args:
        jobs: processes at a time; 0: one a thread of torch's, on a GPU four.
    Returns:
        what could not be made and why, a line each.
    Raises:
        ValueError: negative jobs.
    """
    if jobs < 0:
        raise ValueError(f"jobs must be >= 0, got {jobs}")
    jobs = jobs or (threads() if pick_device(settings.device).type == "cpu" else _ON_A_GPU)
    strangers = range(1, settings.fingerprint.trained + 1)
    first = [(f"{name} and its surrogate", open_bench, settings, name) for name in settings.models]
    first += [(f"stranger {i} of notebook 13", open_stranger, settings, i) for i in strangers]
    failed = _each(first, jobs)
    if failed:
        return failed
    models = planned(settings, depth=len(open_model(settings).vit.blocks))
    models.sort(key=lambda p: p.objective not in ADVERSARIAL)  # those take longest
    return _each([(str(p), _make, settings, p) for p in models], jobs)


def _each(tasks: Sequence[tuple], jobs: int) -> list[str]:
    """Do all tasks (name, function, *arguments), so many at a time; returns a line for each that failed."""
    lines: list[tuple[str, str]] = []  # of those that ended: what is told, and the error

    def ended(name: str, future: Future) -> None:
        try:
            minutes, error = future.result()
        except KILLED:
            minutes, error = 0.0, "its process was killed, or one beside it: try fewer --jobs"
        told = f"{name}: FAILED, {error}" if error else f"{name}: {minutes:.1f} min"
        lines.append((told, error))
        print(f"[{len(lines)}/{len(tasks)}] {told}", flush=True)

    with workers(min(jobs, len(tasks))) as submit:
        for name, *work in tasks:
            submit(_timed, *work).add_done_callback(partial(ended, name))
    return [told for told, error in lines if error]


def _timed(function: Callable[..., object], *args) -> tuple[float, str]:
    """(minutes, error): one that fails does not stop the others. What is made stays in the store alone."""
    started = time.monotonic()
    try:
        function(*args)
    except Exception as error:
        return 0.0, f"{type(error).__name__}: {error}"
    return (time.monotonic() - started) / 60, ""


def _make(settings: Settings, one: Planned) -> None:
    bench = open_bench(settings, one.model)
    run(astray(bench) if one.astray else bench, settings, one.objective, seed=one.seed, **one.changes)
    unchanged = one == Planned(settings.models[0], one.objective, one.seed)
    if unchanged and one.objective in TRACED:  # 05 and 13 look at the models themselves, not only at kept rows
        finetuned(bench, settings, one.objective, seed=one.seed)
    first = unchanged and one.seed == 0
    if first and one.objective in _ATTACKED:
        strength(bench, settings, one.objective)
    if first and one.objective in of_wide(settings):
        wide_row(bench, settings, one.objective)
