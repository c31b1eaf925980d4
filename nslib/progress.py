"""Progress bars of long work, in a terminal and in a notebook alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from nslib.config import FinetuneConfig, NoiseConfig


@contextmanager
def noise_bar(cfg: NoiseConfig, label: str = "noise") -> Iterator[Callable]:
    """A bar for `learn_noise(..., on_step=...)` that shows the gap on the batch and the norm."""
    with tqdm(total=cfg.steps, desc=label, leave=False) as bar:

        def on_step(step: int, trace) -> None:
            bar.n = step
            bar.set_postfix(gap=f"{trace.gap[-1]:.4f}", norm=f"{trace.norm[-1]:.1f}", refresh=False)
            bar.refresh() if step % 10 == 0 else None

        yield on_step


@contextmanager
def finetune_bar(cfg: FinetuneConfig, label: str = "finetune", *, disable: bool = False) -> Iterator[Callable]:
    """A bar over the updates for `finetune_model(..., on_step=...)`: round, loss; step, gap, norm and loss of noise."""
    with tqdm(total=cfg.rounds * cfg.steps, desc=label, leave=False, disable=disable) as bar:
        told: dict[str, str] = {}

        def on_step(moment) -> None:
            if moment.phase == "noise" and moment.step % 10:
                return
            bar.n = moment.round * cfg.steps + (moment.step if moment.phase == "update" else 0)
            if not told:  # a run that goes on: what was done before says nothing about its speed
                bar.initial, bar.start_t = bar.n, time.time()
            values = {f"noise {k}" if moment.phase == "noise" else k: v for k, v in moment.values.items()}
            told.update({k: f"{v:.3g}" for k, v in values.items()})
            if moment.phase == "noise":
                told["noise step"] = str(moment.step)
            bar.set_postfix(told | {"round": f"{moment.round + 1}/{cfg.rounds}"}, refresh=False)
            bar.refresh()

        yield on_step
