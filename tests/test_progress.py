"""Bars end full where the work ended well: a notebook keeps one that did not, in red."""

import pytest
from tqdm import tqdm

from nslib.config import FinetuneConfig, NoiseConfig
from nslib.machine import progress
from nslib.nullspace.encoder import Trace


@pytest.fixture
def closed(monkeypatch):
    """Of each bar that was closed, where it stood and where it would have ended."""
    found = []

    class Bar(tqdm):
        def close(self):
            if not self.disable:
                found.append((self.n, self.total))
            super().close()

    monkeypatch.setattr(progress, "tqdm", Bar)
    return found


def test_a_search_that_ends_early_has_a_full_bar(closed):
    with progress.noise_bar(NoiseConfig(steps=3000)) as on_step:
        on_step(16, Trace(gap=[0.01], norm=[60.0], loss=[1.0]))
    assert closed == [(16, 16)]


def test_a_model_that_was_there_already_has_a_full_bar(closed):
    with progress.finetune_bar(FinetuneConfig(rounds=2, steps=3)):
        pass
    assert closed == [(0, 0)]


def test_an_interrupted_search_has_not(closed):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), progress.noise_bar(NoiseConfig(steps=3000)):
        stop()
    assert closed == [(0, 3000)]
