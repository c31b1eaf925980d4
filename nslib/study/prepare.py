"""Making the models of a profile before its notebooks ask for them, many at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from nslib.finetune.objectives import ADVERSARIAL
from nslib.machine.workers import KILLED, threads, workers
from nslib.runtime import pick_device
from nslib.settings import Settings
from nslib.study.beside import influence_of_rounds, strength
from nslib.study.experiment import open_bench, open_model, open_stranger
from nslib.study.jobs import finetuned, run, wide_row
from nslib.study.plan import Planned, astray, planned
from nslib.study.ready import check_images, check_study
from nslib.study.traces import TRACED
from nslib.study.trials import OF_OTHERS, of_influences, of_wide

_ATTACKED = (*OF_OTHERS, *ADVERSARIAL)  # by 07, against the strength of an attack
_ON_A_GPU = 4  # processes, by default: each holds its own model and images there


def prepare(settings: Settings, *, jobs: int = 0) -> list[str]:
    """Train, finetune and measure all models of a profile's notebooks but those of the search of 11.

    The notebooks then find them made; eps sets and the base model's rows are left to them. What is there already is not
    made again, and what was stopped goes on. A line is printed for each.

    Args:
        jobs: processes at a time; 0: one a thread of torch's, on a GPU four.
    Returns:
        what could not be made and why, a line each.
    Raises:
        ValueError: negative jobs, or as `check_study` and `check_images`.
    """
    if jobs < 0:
        raise ValueError(f"jobs must be >= 0, got {jobs}")
    check_study(settings)
    check_images(settings, notebooks=False)
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
    if unchanged and one.objective in of_influences(settings):
        influence_of_rounds(bench, settings, one.objective, seed=one.seed)
    first = unchanged and one.seed == 0
    if first and one.objective in _ATTACKED:
        strength(bench, settings, one.objective)
    if first and one.objective in of_wide(settings):
        wide_row(bench, settings, one.objective)
