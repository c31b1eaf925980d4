"""AutoAttack, the ensemble without settings that a robustness claim has to survive, by pyautoattack."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nslib.attacks.budget import check_budget, tight
from nslib.attacks.target import under_attack
from nslib.runtime import optional, quiet

FEWEST = 4  # classes of a model: the targeted loss compares as many logits
_TARGETS = 9  # classes that APGD and FAB aim at in the standard version


def auto_attack(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, seed: int = 0) -> Tensor:
    """APGD on cross-entropy, targeted APGD and FAB, and Square, each on the images that the ones before left right.

    The batch is the unit: the library draws for all of its images together, so that an image's draws depend on those
    beside it. Batches that are to have draws of their own need seeds of their own.

    Args:
        eps: linf budget in pixel units.
        seed: of every random start; torch's global generator is left as it was.
    Returns:
        (B, C, H, W): an adversarial image within the budget, or the clean one where all four failed.
    Raises:
        ValueError: eps negative or above 1, fewer than four classes, or as `under_attack`.
        FloatingPointError: NaN logits.
        ModuleNotFoundError: pyautoattack is not installed.
    Source: Croce and Hein 2020, arXiv:2003.01690, version `standard`.
    """
    check_budget(eps)
    library = optional("pyautoattack", "attacks")
    with under_attack(model, images, labels) as (target, images, labels, num_classes):
        if num_classes < FEWEST:
            raise ValueError(f"AutoAttack needs {FEWEST} classes, got a model of {num_classes}")
        if eps == 0:
            return images
        with _quiet(), torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            attack = library.AutoAttack(
                target, norm="Linf", eps=tight(eps, images.dtype), seed=seed, device=images.device
            )
            attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(_TARGETS, num_classes - 1)
            found, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """The library logs, and its check for dynamic models switches off whatever traces Python, a debugger for one."""
    tracer = sys.gettrace()
    try:
        with quiet("auto-attack"):
            yield
    finally:
        sys.settrace(tracer)
