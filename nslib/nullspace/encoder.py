"""Learning noise that the encoder does not notice: Eqs. (4), (7) and (8) of arXiv:2403.10476."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nslib.config import NoiseConfig
from nslib.models import StagedViT, frozen
from nslib.nullspace.membership import CleanPass, Pool, agreement, inside, probability_gap

VERSION = 2  # part of every stored noise: raise it when the same settings give another result


@dataclass(frozen=True)
class Trace:
    """What happened at each step, before its update; and at each held-out test, (step, mean gap, images seen),
    the gap being a lower bound where not all images were seen."""

    loss: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)  # on the step's batch
    norm: list[float] = field(default_factory=list)
    tests: list[tuple[int, float, int]] = field(default_factory=list)


@dataclass(frozen=True)
class LearnedNoise:
    """A noise (1, N, D) in token units and how it was come by."""

    noise: Tensor
    norm: float
    gap_batch: float  # mean squared l2 gap between softmax vectors on the last batch
    gap_heldout: float  # the same on all held-out images
    match_heldout: float  # share of held-out images whose class is unchanged
    steps: int  # updates made
    seconds: float  # wall time, held-out tests included
    converged: bool  # False if eps was asked for and cfg.steps ran out
    trace: Trace


class NoiseDiverged(FloatingPointError):
    """The loss was not finite. `noise` is the last one whose loss was; `step` and `cfg` say where."""

    def __init__(self, step: int, loss: float, cfg: NoiseConfig, noise: Tensor):
        super().__init__(
            f"loss is {loss} at step {step} of {cfg}: lower lr or limit (the last good noise is kept in .noise)"
        )
        self.step, self.cfg, self.noise = step, cfg, noise


def start_noise(model: StagedViT, limit: float, *, generator: torch.Generator) -> Tensor:
    """v_0 ~ U(-limit, limit), (1, N, D), on the model's device; its norm is near limit * sqrt(N D / 3)."""
    uniform = torch.rand(1, *model.token_shape, generator=generator) * 2 - 1
    return (uniform * limit).to(model.device)


def learn_noise(
    model: StagedViT,
    pool: Pool,
    cfg: NoiseConfig,
    *,
    generator: torch.Generator,
    start: Tensor | None = None,
    on_step: Callable[[int, Trace], None] | None = None,
) -> LearnedNoise:
    """Learn one noise, shared by all images, that leaves predictions unchanged.

    Starts at v ~ U(-cfg.limit, cfg.limit) and minimises mean_B ||f(u + v) - f(u)||_2 - cfg.regularization * log ||v||_2
    on logits, u being patch tokens before class token and position embedding. Only v is trained: parameters are
    frozen, tokens and clean logits come from the pool, so that a step is one forward and one backward to the input.
    With cfg.eps it stops as soon as the noise is eps-approximate, tested on held-out images whenever the batch says so.

    Args:
        pool: tokens (M, N, D) and clean logits (M, K), with a held-out part for the stopping test.
        cfg: eps is a squared l2 gap between softmax vectors; None makes cfg.steps updates, Eq. (4).
        generator: draws the start and the batches.
        start: (1, N, D), instead of a drawn one.
        on_step: called before each update, for a progress bar.
    Raises:
        ValueError: model in training mode, empty pool, start of the wrong shape, device or dtype.
        NoiseDiverged: the loss is not finite; keeps the last good noise.
    Source: arXiv:2403.10476, Eq. (4) with regularization, Eqs. (7)-(8) without.
    """
    model.check_frozen_use()
    for name, part in zip(Pool._fields, pool, strict=True):
        if not len(part):
            raise ValueError(f"the pool's {name} part is empty: it needs at least one image")
    noise = start_noise(model, cfg.limit, generator=generator) if start is None else start.clone()
    model.check_noise(noise)

    noise.requires_grad_(True)
    optimizer = torch.optim.AdamW([noise], lr=cfg.lr, weight_decay=cfg.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=cfg.steps)
    trace, stop = Trace(), _Stopping(model, pool, cfg)
    batches = _batches(pool.train, min(cfg.batch, len(pool.train)), generator)
    last_good = noise.detach().clone()
    converged = cfg.eps is None
    started = time.monotonic()
    with frozen(model), torch.enable_grad():
        for step in range(cfg.steps + 1):
            clean = next(batches)
            logits = model.logits_from_tokens(clean.tokens + noise)
            loss = (logits - clean.logits).norm(dim=1).mean()
            if cfg.regularization:
                loss = loss - cfg.regularization * noise.norm().log()
            gap = probability_gap(logits.detach(), clean.logits).mean()
            told = torch.stack((loss.detach(), gap, noise.detach().norm())).tolist()  # at once: a GPU waits for each
            if not math.isfinite(told[0]):
                raise NoiseDiverged(step, told[0], cfg, last_good)
            last_good.copy_(noise.detach())
            for column, value in zip((trace.loss, trace.gap, trace.norm), told, strict=True):
                column.append(value)
            if on_step:
                on_step(step, trace)
            if cfg.eps is not None and stop.now(step, noise.detach(), trace):
                converged = True
                break
            if step == cfg.steps:
                break
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return _result(model, pool, noise.detach(), step, time.monotonic() - started, converged, trace)


def _result(
    model: StagedViT, pool: Pool, noise: Tensor, steps: int, seconds: float, converged: bool, trace: Trace
) -> LearnedNoise:
    held = agreement(model, pool.heldout, noise)
    return LearnedNoise(
        noise=noise,
        norm=noise.norm().item(),
        gap_batch=trace.gap[-1],
        gap_heldout=held.gap.mean().item(),
        match_heldout=held.match.float().mean().item(),
        steps=steps,
        seconds=seconds,
        converged=converged,
        trace=trace,
    )


def _batches(clean: CleanPass, size: int, generator: torch.Generator) -> Iterator[CleanPass]:
    """Batches for ever: each pass over the images in a new order, remainders dropped."""
    while True:
        order = torch.randperm(len(clean), generator=generator).to(clean.tokens.device)
        for rows in order.split(size):
            if len(rows) == size:
                yield clean[rows]


class _Stopping:
    """Decides when a noise is eps-approximate, without spending much on held-out tests.

    The batch's gap is free, so it is asked first. The first test looks at all held-out images and then puts those
    with the largest gaps in front, so that later tests that fail are abandoned early, which changes no answer. The
    longer the search, the rarer the tests, about 30 in the time in which the number of steps doubles.
    """

    def __init__(self, model: StagedViT, pool: Pool, cfg: NoiseConfig):
        self.model, self.heldout, self.cfg = model, pool.heldout, cfg
        self.due = 0
        self.sorted = False

    def now(self, step: int, noise: Tensor, trace: Trace) -> bool:
        if self.cfg.stop_on == "batch":
            return trace.gap[-1] < self.cfg.eps
        if step < self.due or not trace.gap[-1] < self.cfg.eps:
            return False
        if not self.sorted:
            hardest_first = agreement(self.model, self.heldout, noise).gap.argsort(descending=True)
            self.heldout, self.sorted = self.heldout[hardest_first], True
        test = inside(self.model, self.heldout, noise, self.cfg.eps, batch=self.cfg.batch)
        trace.tests.append((step, test.gap, test.seen))
        self.due = step + 1 + step // 30
        return test.inside
