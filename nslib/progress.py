"""Progress bars of long work, in a terminal and in a notebook alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from nslib.config import NoiseConfig


@contextmanager
def noise_bar(cfg: NoiseConfig, label: str = "noise") -> Iterator[Callable]:
    """A bar for `learn_noise(..., on_step=...)` that shows the gap on the batch and the norm."""
    with tqdm(total=cfg.steps, desc=label, leave=False) as bar:

        def on_step(step: int, trace) -> None:
            bar.n = step
            bar.set_postfix(gap=f"{trace.gap[-1]:.4f}", norm=f"{trace.norm[-1]:.1f}", refresh=False)
            bar.refresh() if step % 10 == 0 else None

        yield on_step
