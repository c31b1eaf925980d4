"""Progress bars of long work, in a terminal and in a notebook alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from nslib.config import FinetuneConfig, NoiseConfig


@contextmanager
def _passing(**settings) -> Iterator[tqdm]:
    """A bar that is gone when its work has ended well, also early: a notebook keeps one that is not full, in red."""
    with tqdm(leave=False, **settings) as bar:
        yield bar
        bar.total = bar.n


@contextmanager
def noise_bar(cfg: NoiseConfig) -> Iterator[Callable]:
    """A bar for `learn_noise(..., on_step=...)` that shows the gap on the batch and the norm."""
    with _passing(total=cfg.steps, desc="noise") as bar:

        def on_step(step: int, trace) -> None:
            bar.n = step
            bar.set_postfix(gap=f"{trace.gap[-1]:.4f}", norm=f"{trace.norm[-1]:.1f}", refresh=False)
            if step % 10 == 0:
                bar.refresh()

        yield on_step


_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"  # no rate of updates: searches lie between them


class _TimeLeft:
    """Seconds that are left of a finetuning, by rounds that were seen whole: each has its search and its updates."""

    def __init__(self, cfg: FinetuneConfig):
        self.cfg = cfg
        self.rounds: dict[int, float] = {}  # when each began
        self.update: tuple[int, float] | None = None  # the first that was seen, and when

    def __call__(self, moment, now: float) -> float | None:
        """None until one round can be told from its search and two updates."""
        if not self.rounds and (moment.phase, moment.step) not in (("noise", 0), ("update", 1)):
            return None  # a run that goes on is in the middle of one
        began = self.rounds.setdefault(moment.round, now)
        first, start = next(iter(self.rounds.items()))
        if moment.round > first:
            each = (began - start) / (moment.round - first)
            return max(0.0, each * (self.cfg.rounds - moment.round) - (now - began))
        if moment.phase == "noise":
            return None
        step, made = self.update = self.update or (moment.step, now)
        if moment.step == step:
            return None
        updates = (now - made) / (moment.step - step) * (self.cfg.steps - moment.step)  # that this round still has
        return updates + (now - start + updates) * (self.cfg.rounds - moment.round - 1)


@contextmanager
def finetune_bar(cfg: FinetuneConfig, label: str = "finetune", *, disable: bool = False) -> Iterator[Callable]:
    """A bar over the updates for `finetune_model(..., on_step=...)`.

    It shows round, loss and time left, and of the noise step, gap, norm and loss.
    """
    with _passing(total=cfg.rounds * cfg.steps, desc=label, disable=disable, bar_format=_BAR) as bar:
        told: dict[str, str] = {}
        left = _TimeLeft(cfg)

        def on_step(moment) -> None:
            seconds = left(moment, time.monotonic())
            if moment.phase == "noise" and moment.step % 10:
                return
            bar.n = moment.round * cfg.steps + (moment.step if moment.phase == "update" else 0)
            values = {f"noise {k}" if moment.phase == "noise" else k: v for k, v in moment.values.items()}
            told.update({k: f"{v:.3g}" for k, v in values.items()})
            if moment.phase == "noise":
                told["noise step"] = str(moment.step)
            place = {"left": "?" if seconds is None else bar.format_interval(seconds),
                     "round": f"{moment.round + 1}/{cfg.rounds}"}  # fmt: skip
            bar.set_postfix(place | told, refresh=False)
            bar.refresh()

        yield on_step
