"""What a finetuning costs, counted instead of timed, so that it can be compared between machines (claim C18)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nslib.config import FinetuneConfig
from nslib.machine.replay import counting
from nslib.vit.staged import StagedViT

STANDARD_TRAINING = 3  # units an image: forward, backward to the input, backward to the weights


class Meter:
    """Passes so far of one image through one of `depth` blocks.

    A backward pass to the tokens is one more, and one to the weights another. Not counted are patch embedding and head;
    the last block counts as a whole, also where only its prefix tokens are computed. Where only deeper blocks are
    trained, a backward pass does not reach the tokens that enter the first one, and is not counted.
    """

    def __init__(self, depth: int):
        self.depth = depth
        self.passes = 0

    @property
    def units(self) -> float:
        """Passes through the whole encoder: a whole number but where a noise is added to a deeper block."""
        whole, rest = divmod(self.passes, self.depth)
        return whole + rest / self.depth if rest else whole

    def watch(self, part: nn.Sequential) -> RemovableHandle:
        """Count what passes through these blocks, one after the other, from now on."""

        def enters(_, inputs: tuple[Tensor, ...]) -> None:
            tokens = inputs[0]
            self._add(len(part) * len(tokens))
            if torch.is_grad_enabled() and tokens.requires_grad:
                to_weights = any(p.requires_grad for p in part.parameters())
                tokens.register_hook(lambda gradient: self._add(len(part) * len(gradient) * (1 + to_weights)))

        # A plain block that is the last is not called itself, see StagedViT.logits_from_tokens.
        first = part[0].norm1 if type(part[0]) is Block else part[0]
        return first.register_forward_pre_hook(enters)

    def _add(self, passes: int) -> None:
        self.passes += passes


@contextmanager
def metered(model: StagedViT) -> Iterator[Meter]:
    """Count what passes through the model's blocks inside the block of code."""
    blocks = model.vit.blocks
    meter = Meter(len(blocks))
    parts = (blocks[: model.block], blocks[model.block :])
    with ExitStack() as hooks, counting(meter):
        for part in parts:
            if len(part):
                hooks.enter_context(meter.watch(part))
        yield meter


def split_told(cfg: FinetuneConfig, train: int | None) -> str:
    """In words, how many images of split train are for the noise and how many for the updates."""
    noise = cfg.pool + cfg.heldout
    left = "the others" if train is None else f"{train - noise:,} of {train:,}"
    return f"split train: {noise:,} images for the noise, {left} for the updates"


def cost_told(units: float, train: int | None) -> str:
    """A cost in words, as standard training: its images, and its epochs where split train holds so many images."""
    images = units / STANDARD_TRAINING
    epochs = f", {images / train:.3g} epochs over the {train:,} of split train (the paper: 8)" if train else ""
    return f"{images:,.0f} images of standard training{epochs}"
