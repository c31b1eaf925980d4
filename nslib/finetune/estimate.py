"""What a finetuning will need, told before it starts: by one round of two noise steps and three updates."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from nslib.config import FinetuneConfig
from nslib.data.source import Source
from nslib.finetune.cost import cost_told, split_told
from nslib.finetune.draws import draws
from nslib.finetune.objectives import recipe_of
from nslib.finetune.precision import computing_in, resolved
from nslib.finetune.rounds import Moment, finetune_model
from nslib.finetune.updates import Trainer
from nslib.machine.processes import ALONE, Share
from nslib.nullspace.encoder import step_images
from nslib.runtime import generator
from nslib.vit.staged import StagedViT, frozen

_TRIED = 2  # the first noise step and the first update are slower; after a round's last update the model is checked


@dataclass(frozen=True)
class Needs:
    """What a run needs of which no noise is inside eps before its last step.

    Units are those of `Meter`, bytes those of one process. Held-out tests on the way and the way to the boundary of a
    warm start are not counted: a few passes over the held-out images a round. Groups are taken to be of equal size.
    """

    cfg: FinetuneConfig  # its precisions resolved
    images: int  # of all updates
    noise_steps: int  # of all rounds
    noise_units: float
    update_units: float
    noise_step_seconds: float
    update_seconds: float
    hours: float
    memory: dict[str, int]  # bytes by what they are for
    peak: int  # bytes: on CUDA the most that was allocated, else the sum of `memory`
    train: int | None  # images of split train

    def lines(self) -> list[str]:
        """They in words."""
        cfg, at_most = self.cfg, "without early stops " if self.noise_steps else ""
        parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in self.memory.items())
        return [
            f"images: {self.images:,}, in {cfg.rounds} rounds of {cfg.steps} updates of {cfg.batch}",
            split_told(cfg, self.train),
            f"noise steps: {at_most}{self.noise_steps:,}",
            f"forward passes: {at_most}{self.noise_units:,.0f} for noise, {self.update_units:,.0f} for updates",
            f"cost: {at_most}{cost_told(self.noise_units + self.update_units, self.train)}",
            f"memory of a process, GB: {self.peak / 1e9:.2f} beside Python and torch ({parts})",
            f"hours: {at_most}{self.hours:.2f}, with {self.noise_step_seconds:.3f} s a noise step and "
            f"{self.update_seconds:.3f} s an update, as measured now in {cfg.precision}",
        ]


def estimate(model: StagedViT, source: Source, cfg: FinetuneConfig, *, share: Share = ALONE) -> Needs:
    """Images, steps, forward passes, memory and hours of `finetune_model` with these arguments.

    Reads the pool and the images of three updates, and writes nothing.

    Raises:
        as `finetune_model`.
    """
    objective, cfg = recipe_of(cfg)
    cfg = resolved(cfg, model.device, share)
    times: dict[tuple[str, int], float] = {}

    def watch(moment: Moment) -> None:
        times[moment.phase, moment.step] = time.monotonic()

    noise = replace(cfg.noise, steps=_TRIED, eps=None) if objective.learns else cfg.noise
    tried = replace(cfg, rounds=1, steps=_TRIED + 1, noise=noise, warm_start=0.0)
    cuda = model.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(model.device)
    (done,) = finetune_model(model, source, tried, share=share, on_step=watch).history
    allocated = torch.cuda.max_memory_allocated(model.device) if cuda else 0
    memory = _memory(model, cfg, share)

    update = times["update", _TRIED] - times["update", _TRIED - 1]
    step = times["noise", _TRIED] - times["noise", _TRIED - 1] if objective.learns else 0.0
    searches = cfg.noises * cfg.groups if objective.learns else 0
    further = searches * (cfg.noise.steps - _TRIED)  # steps of a round, besides those that were tried
    depth = len(model.vit.blocks)
    passes = 2 * step_images(cfg.noise, cfg.pool // cfg.groups, share) if searches else 0  # there and back
    step_units = passes * (depth - cfg.block) / depth
    return Needs(
        cfg=cfg,
        images=cfg.rounds * cfg.steps * cfg.batch,
        noise_steps=cfg.rounds * searches * cfg.noise.steps,
        noise_units=cfg.rounds * (done.noise_units + further * step_units),
        update_units=cfg.rounds * cfg.steps * done.update_units / tried.steps,
        noise_step_seconds=step,
        update_seconds=update,
        hours=cfg.rounds * (done.noise_seconds + further * step + cfg.steps * update) / 3600,
        memory=memory,
        peak=allocated or sum(memory.values()),
        train=source.count("train"),
    )


def _memory(model: StagedViT, cfg: FinetuneConfig, share: Share) -> dict[str, int]:
    """Bytes by what they are for; activations as the larger of an update and a noise step keeps for its way back."""
    objective, _ = recipe_of(cfg)
    trainer = Trainer(deepcopy(model), objective, cfg, share)
    images = torch.rand(share.size(cfg.batch), *model.image_shape, generator=generator(0)).to(model.device)
    labels = torch.zeros(len(images), dtype=torch.int64, device=model.device)
    weight, precision = model.vit.patch_embed.proj.weight, cfg.precision
    noise = torch.zeros(1, *trainer.model.token_shape).to(weight) if objective.noise else None

    def update() -> None:
        with computing_in(precision, model.device):
            trainer.update(images.to(weight), labels, noise, draws(cfg.seed, "attack", 0))

    def search() -> None:
        images = step_images(cfg.noise, cfg.pool // cfg.groups, share) // share.count
        tokens = torch.zeros(images, *trainer.model.token_shape).to(weight)
        with frozen(trainer.model), computing_in(precision, model.device):
            trainer.model.logits_from_tokens(tokens + noise.clone().requires_grad_()).sum().backward()

    calls = [update, search] if objective.learns else [update]
    weights, trained = (sum(p.nbytes for p in part) for part in (model.parameters(), trainer.parameters))
    pooled = cfg.pool + cfg.heldout if objective.noise else 0
    return {
        "weights": weights * (3 + bool(cfg.ema)),  # given, in training, at the round's beginning, averaged
        "gradients": trained,
        "moments": 2 * trained,
        "pool": pooled * (prod(model.image_shape) + prod(trainer.model.token_shape)) * weight.element_size(),
        "activations": max(kept_bytes(call, weights=trainer.model.parameters()) for call in calls),
    }


def kept_bytes(call: Callable[[], Any], *, weights: Iterable[Tensor] = ()) -> int:
    """The most bytes that autograd keeps at a time while something is called, without those of the weights.

    Tensors that share their memory are counted once.
    """
    known = {p.untyped_storage().data_ptr() for p in weights}
    kept: Counter[int] = Counter()  # graphs that hold a storage, by its address
    now = most = 0

    class Kept:
        """A tensor that a graph holds; with the graph it goes."""

        def __init__(self, tensor: Tensor):
            nonlocal now, most
            self.tensor, storage = tensor, tensor.untyped_storage()
            self.place, self.size = storage.data_ptr(), storage.nbytes()
            kept[self.place] += 1
            if kept[self.place] == 1 and self.place not in known:
                now += self.size
                most = max(most, now)

        def __del__(self):
            nonlocal now
            kept[self.place] -= 1
            if not kept[self.place] and self.place not in known:
                now -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda held: held.tensor):
        call()
    return most
