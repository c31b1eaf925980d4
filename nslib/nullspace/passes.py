"""One step's look at the model in a search for noise: how far the logits of a batch move, and which way less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from nslib.machine.replay import Recorded
from nslib.nullspace.membership import CleanPass, probability_gap
from nslib.vit.staged import StagedViT


class NoisePass:
    """The loss of Eq. (4) at a noise (1, N, D) that changes in place, batch by batch.

    Calling it with a batch gives (3,): loss, mean gap of Eq. (5), norm of the noise. `gradient` is that of the last
    batch's loss.
    """

    def __init__(self, model: StagedViT, noise: Tensor, regularization: float):
        self.model, self.noise, self.regularization = model, noise, regularization

    def __call__(self, clean: CleanPass) -> Tensor:
        self._loss, told = self._look(clean)
        return told

    def gradient(self) -> Tensor:
        """(1, N, D)."""
        return torch.autograd.grad(self._loss, self.noise)[0]

    def _look(self, clean: CleanPass) -> tuple[Tensor, Tensor]:
        logits = self.model.logits_from_tokens(clean.tokens + self.noise)
        loss = (logits - clean.logits).norm(dim=1).mean()
        if self.regularization:
            loss = loss - self.regularization * self.noise.norm().log()
        gap = probability_gap(logits.detach(), clean.logits).mean()
        return loss, torch.stack((loss.detach(), gap, self.noise.detach().norm()))


class RecordedPass(NoisePass):
    """The same on a GPU, with batches of one size, recorded at the first and then replayed; its products are TF32.

    The gradient is computed with the loss: asking for it costs nothing, nor does leaving it.
    """

    _recorded: Recorded | None = None

    def __call__(self, clean: CleanPass) -> Tensor:
        if self._recorded is None:
            with _tf32():
                self._recorded = Recorded(self._both, clean.tokens, clean.logits)
        told, self._gradient = self._recorded(clean.tokens, clean.logits)
        return told

    def gradient(self) -> Tensor:
        return self._gradient

    def _both(self, tokens: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        loss, told = self._look(CleanPass(tokens, logits))
        return told, torch.autograd.grad(loss, self.noise)[0]


def noise_pass(model: StagedViT, noise: Tensor, regularization: float) -> NoisePass:
    """The pass that suits the device of the noise, and the model: what Python does in it is not recorded.

    That is what a class or a hook of the user's own does, and computing a block again on the way back.
    """
    recordable = noise.is_cuda and not model.vit.grad_checkpointing and not {"class", "hooks"} & model.identity().keys()
    return (RecordedPass if recordable else NoisePass)(model, noise, regularization)


@contextmanager
def _tf32() -> Iterator[None]:
    products = torch.backends.cuda.matmul
    exact = products.fp32_precision != "tf32"  # the older switch refuses to be read where the newer one is set to it
    if exact:
        products.allow_tf32 = True
    try:
        yield
    finally:
        if exact:
            products.allow_tf32 = False
