"""Learning noise that the encoder does not notice: Eqs. (4), (7) and (8) of arXiv:2403.10476."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from nslib.config import NoiseConfig
from nslib.machine.processes import ALONE, Share
from nslib.nullspace.membership import CleanPass, EpsTest, Pool, agreement, inside
from nslib.nullspace.passes import noise_pass
from nslib.vit.staged import StagedViT, frozen

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


@dataclass
class Memory:
    """Lets a search go on after a kill: `save` is given its state, tensors and plain values, every so many steps.

    `state` is what an earlier search of the same model, pool, settings and generator has left; None begins anew.
    """

    every: int
    save: Callable[[dict], None]
    state: dict | None = None


class NoiseDiverged(FloatingPointError):
    """The loss was not finite. `noise` is the last one whose loss was, or the start; `step` and `cfg` say where."""

    def __init__(self, step: int, loss: float, cfg: NoiseConfig, noise: Tensor):
        super().__init__(f"loss is {loss} at step {step} of {cfg}: lower its lr or limit")
        self.step, self.loss, self.cfg, self.noise = step, loss, cfg, noise


def start_noise(model: StagedViT, limit: float, *, generator: torch.Generator) -> Tensor:
    """v_0 ~ U(-limit, limit), (1, N, D), in the model's device and type; its norm is near limit * sqrt(N D / 3)."""
    uniform = torch.rand(1, *model.token_shape, generator=generator) * 2 - 1
    return (uniform * limit).to(model.vit.patch_embed.proj.weight)


def learn_noise(
    model: StagedViT,
    pool: Pool,
    cfg: NoiseConfig,
    *,
    generator: torch.Generator,
    start: Tensor | None = None,
    share: Share = ALONE,
    memory: Memory | None = None,
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
        share: of each batch, for several processes that hold the same model and pool and draw the same batches; they
            learn the same noise.
        memory: of a search that may be killed; it goes on to the noise of an unbroken one.
        on_step: called before each update, for a progress bar.
    Raises:
        ValueError: model in training mode, empty pool or one of another model, start of the wrong shape, device or
            dtype; a batch that cannot be shared equally.
        NoiseDiverged: the loss is not finite; keeps the last good noise.
    Source: arXiv:2403.10476, Eq. (4) with regularization, Eqs. (7)-(8) without.
    """
    model.check_frozen_use()
    model.check_learning()
    for name, part in zip(Pool._fields, pool, strict=True):
        if not len(part):
            raise ValueError(f"the pool's {name} part is empty: it needs at least one image")
        if (part.tokens.shape[1:], part.logits.shape[1:]) != (model.token_shape, (model.num_classes,)):
            raise ValueError(f"the pool's {name} part is of another model than {model.name}: make it with this one")
    noise = start_noise(model, cfg.limit, generator=generator) if start is None else start.detach().clone()
    model.check_noise(noise)

    noise.requires_grad_(True)
    optimizer = torch.optim.AdamW([noise], lr=cfg.lr, weight_decay=cfg.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=cfg.steps)
    trace, stop = Trace(), _Stopping(model, pool, cfg, share)
    batches = _Batches(pool.train, step_images(cfg, len(pool.train), share), generator, share)
    look = noise_pass(model, noise, cfg.regularization)
    parts = {"optimizer": optimizer, "schedule": schedule, "batches": batches, "stop": stop}
    first, seconds = _restore(memory.state, noise, trace, parts) if memory and memory.state else (0, 0.0)
    last_good = noise.detach().clone()
    converged = cfg.eps is None
    started = time.monotonic() - seconds
    with frozen(model), torch.enable_grad():
        for step in range(first, cfg.steps + 1):
            told = share.mean(look(batches.next())).tolist()  # at once: a GPU waits for each
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
            noise.grad = share.mean(look.gradient())
            optimizer.step()
            schedule.step()
            if memory and (step + 1) % memory.every == 0:
                state = {name: part.state_dict() for name, part in parts.items()}
                told = {"step": step + 1, "seconds": time.monotonic() - started, "trace": asdict(trace)}
                memory.save({**state, **told, "noise": noise.detach()})
    noise, seconds = noise.detach(), time.monotonic() - started
    held = stop.passed or inside(model, pool.heldout, noise, eps=2.0)  # eps = 2 sees all images
    return LearnedNoise(
        noise=noise,
        norm=noise.norm().item(),
        gap_batch=trace.gap[-1],
        gap_heldout=held.gap,
        match_heldout=held.match,
        steps=step,
        seconds=seconds,
        converged=converged,
        trace=trace,
    )


def step_images(cfg: NoiseConfig, pool: int, share: Share = ALONE) -> int:
    """Images that a step sees, of a pool of so many: cfg.batch, or where it holds fewer all that can be shared equally.

    Raises:
        ValueError: the pool holds fewer images than there are processes; or as `Share.size`.
    """
    if pool < share.count:
        raise ValueError(f"{pool} images to learn noise from cannot be shared by {share.count} processes: raise pool")
    size = cfg.batch if cfg.batch <= pool else pool // share.count * share.count
    share.size(size)
    return size


def _restore(state: dict, noise: Tensor, trace: Trace, parts: dict) -> tuple[int, float]:
    """Put a search back to where its state was saved; returns the next step and the seconds spent."""
    noise.detach().copy_(state["noise"])
    for name, part in parts.items():
        part.load_state_dict(state[name])
    for column, values in state["trace"].items():
        getattr(trace, column).extend(values)
    return state["step"], state["seconds"]


class _Batches:
    """This process's share of batches, for ever: each pass over the images in a new order, remainders dropped."""

    def __init__(self, clean: CleanPass, size: int, generator: torch.Generator, share: Share):
        self.clean, self.size, self.generator, self.share = clean, size, generator, share
        self.order = torch.empty(0, dtype=torch.int64)

    def next(self) -> CleanPass:
        if len(self.order) < self.size:
            self.order = torch.randperm(len(self.clean), generator=self.generator)
        rows, self.order = self.order[: self.size], self.order[self.size :]
        return self.clean[rows[self.share.rank :: self.share.count].to(self.clean.tokens.device)]

    def state_dict(self) -> dict:
        return {"order": self.order.clone(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        self.order = state["order"].cpu()
        self.generator.set_state(state["generator"].cpu())


class _Stopping:
    """Decides when a noise is eps-approximate, without spending much on held-out tests.

    The batch's gap is free, so it is asked first. The first test looks at all held-out images and then puts those
    with the largest gaps in front, so that later tests that fail are abandoned early, which changes no answer. The
    longer the search, the rarer the tests, about 20 in the time in which the number of steps doubles.
    """

    def __init__(self, model: StagedViT, pool: Pool, cfg: NoiseConfig, share: Share):
        self.model, self.heldout, self.cfg, self.share = model, pool.heldout, cfg, share
        self.due = 0
        self.passed: EpsTest | None = None  # the test, of all images, that ended the search
        self.order: Tensor | None = None  # hardest first

    def now(self, step: int, noise: Tensor, trace: Trace) -> bool:
        if self.cfg.stop_on == "batch":
            return trace.gap[-1] < self.cfg.eps
        unlikely = step < self.due or not trace.gap[-1] < self.cfg.eps
        if unlikely and step < self.cfg.steps:  # the last noise is always tested
            return False
        if self.order is not None:
            test = inside(self.model, self.heldout, noise, self.cfg.eps, batch=self.cfg.batch)
        else:
            found = agreement(self.model, self.heldout, noise, batch=self.cfg.batch)
            gap, match = found.gap.mean().item(), found.match.float().mean().item()
            test = EpsTest(gap < self.cfg.eps, gap, len(self.heldout), match)
            self._sort(found.gap.argsort(descending=True))
        trace.tests.append((step, test.gap, test.seen))
        self.due = step + 1 + step // 30
        inside_everywhere = self.share.mean(noise.new_tensor(float(test.inside)))  # no process stops without the others
        self.passed = test if inside_everywhere.item() == 1 else None
        return self.passed is not None

    def _sort(self, order: Tensor) -> None:
        self.heldout, self.order = self.heldout[order], order

    def state_dict(self) -> dict:
        return {"due": self.due, "order": self.order}

    def load_state_dict(self, state: dict) -> None:
        self.due = state["due"]
        if state["order"] is not None:
            self._sort(state["order"].to(self.heldout.tokens.device))
