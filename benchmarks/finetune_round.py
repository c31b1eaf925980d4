"""A round of `finetune_model` against a plain transcription of Algorithm 1, to the same goal.

Both have the same starts, batches, optimiser and learning rates.

    python benchmarks/finetune_round.py

The transcription recomputes patch tokens and clean logits at each noise step, lets every parameter take a gradient
there, computes the patch embedding and all of the last block as timm does, and in the updates the embedding for each
branch and a gradient for the noise. Both learn their noise to the same held-out eps; our passes over the pool and our
held-out tests are on the clock, its own tests are off it. Updates of the two are interleaved, so that a drift of the
machine's speed falls on both; reading images is off the clock. `noise_ratio`, `update_ratio` and `round_ratio` are the
transcription's seconds over ours, both in float32. `bfloat16_ratio` is not of the algorithm: our round in float32 over
our round in bfloat16, which `precision = auto` takes where the device gains; what the two reach is printed beside it.
`warm_start_ratio` is another algorithm, not a faster one: seconds to a noise in a
second round begun anew over one begun past the boundary along the first round's noise; the norms and gaps that the two
reach are printed beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from copy import deepcopy
from dataclasses import replace

import torch
from noise_step import embedded, plainly, transcription
from timm.optim import param_groups_weight_decay
from torch.nn import functional as F

from nslib.config import DataConfig, FinetuneConfig
from nslib.data.source import open_source
from nslib.finetune.draws import draws, number
from nslib.finetune.noises import Search, find_noises, pool_of
from nslib.finetune.objectives import OBJECTIVES
from nslib.finetune.precision import computing_in
from nslib.finetune.stream import Stream
from nslib.finetune.updates import Trainer
from nslib.machine.processes import ALONE
from nslib.models import load_model
from nslib.runtime import run_record, to_json


class PlainUpdates:
    """Lines 8 to 12 of Algorithm 1 as printed."""

    def __init__(self, model, noise, cfg):
        self.model, self.cfg = model.train(), cfg
        self.noise = noise.clone().requires_grad_(True)  # what the learning phase leaves
        groups = param_groups_weight_decay(
            model.vit, cfg.weight_decay, no_weight_decay_list=model.vit.no_weight_decay()
        )
        self.optimizer = torch.optim.AdamW(groups, lr=cfg.lr, fused=True)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, T_max=cfg.rounds * cfg.steps, eta_min=cfg.lr_min
        )

    def update(self, images, labels) -> float:
        """One update; returns its loss."""
        clean = plainly(self.model, embedded(self.model, images))
        noisy = plainly(self.model, embedded(self.model, images) + self.noise)
        loss = F.cross_entropy(clean, labels) + F.cross_entropy(noisy, labels)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.clip)
        self.optimizer.step()
        self.schedule.step()
        return loss.item()


def timed(action):
    """Seconds, and what the action returned."""
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def learn(model, images, cfg, *, round_=0, last=None):
    """Our learning phase: the pool passed through the model, then the search."""
    with computing_in(cfg.precision, model.device):
        pool = pool_of(model, images, cfg)
        noise, facts = find_noises(
            "learned", model, pool, cfg, round_=round_, last=last, share=ALONE, search=Search(), on_step=None
        )
    return noise, facts[0]


def updates(model, noise, stream, cfg):
    """Of the transcription and of ours, also in bfloat16: seconds of S updates, interleaved, last loss, model after."""
    exact, half = (Trainer(deepcopy(model), OBJECTIVES["nullspace"], cfg, ALONE) for _ in range(2))
    makers = {"theirs": PlainUpdates(deepcopy(model), noise, cfg), "ours": exact, "bfloat16": half}
    seconds, losses = dict.fromkeys(makers, 0.0), {}
    for step, (images, labels) in enumerate(stream.batches(0, cfg.steps)):
        attack = draws(cfg.seed, "attack", step)  # which this objective does not use
        for name, maker in makers.items():
            further = () if name == "theirs" else (noise, attack)
            with computing_in("bfloat16" if name == "bfloat16" else "float32", model.device):
                took, losses[name] = timed(lambda m=maker, x=images, y=labels, f=further: m.update(x, y, *f))
            seconds[name] += took
    return seconds, losses, exact.result()


def main() -> None:
    """Run the pairs, print a line for each, and close with the record as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="rounds by each, from a start of their own")
    parser.add_argument("--steps", type=int, default=40, help="updates in a round")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--pool", type=int, default=512)
    parser.add_argument("--heldout", type=int, default=256)
    args = parser.parse_args()

    model = load_model()
    cfg = FinetuneConfig(steps=args.steps, batch=args.batch, pool=args.pool, heldout=args.heldout, precision="float32")
    cfg = replace(cfg, noise=replace(cfg.noise, batch=args.batch))
    stream = Stream(open_source(DataConfig(), model), model, cfg, ALONE)
    images = stream.for_noise.images
    for precision in ("float32", "bfloat16"):  # warm up
        learn(model, images, replace(cfg, precision=precision, noise=replace(cfg.noise, eps=0.3)))
    updates(model, torch.zeros(1, *model.token_shape), stream, replace(cfg, steps=2))

    names = ("noise_ratio", "update_ratio", "round_ratio", "bfloat16_ratio", "warm_start_ratio")
    ratios = {name: [] for name in names}
    for seed in range(args.pairs):
        cfg = replace(cfg, seed=seed)
        stopping = pool_of(model, images, cfg)  # of the transcription, off its clock
        theirs = sum(transcription(model, images[: cfg.pool], stopping, cfg.noise, number(seed, "noise", 0, 0)))
        ours, (noise, facts) = timed(lambda c=cfg: learn(model, images, c))
        low = replace(cfg, precision="bfloat16")
        half, (_, rough) = timed(lambda c=low: learn(model, images, c))
        update, losses, after = updates(model, noise, stream, cfg)

        past = replace(cfg, warm_start=1.5)
        cold, (_, fresh) = timed(lambda c=cfg, m=after: learn(m, images, c, round_=1))
        warm, (_, further) = timed(lambda c=past, m=after, v=noise: learn(m, images, c, round_=1, last=v))
        ratios["noise_ratio"].append(theirs / ours)
        ratios["update_ratio"].append(update["theirs"] / update["ours"])
        ratios["round_ratio"].append((theirs + update["theirs"]) / (ours + update["ours"]))
        ratios["bfloat16_ratio"].append((ours + update["ours"]) / (half + update["bfloat16"]))
        ratios["warm_start_ratio"].append(cold / warm)
        print(
            f"start {seed}: noise {theirs:.2f} s, ours {ours:.2f} s, {facts.steps} steps to {facts.gap_heldout:.4f}; "
            f"updates {update['theirs']:.2f} s, ours {update['ours']:.2f} s, last losses {losses['theirs']:.4f} "
            f"and {losses['ours']:.4f}\n  in bfloat16: noise {half:.2f} s, {rough.steps} steps to "
            f"{rough.gap_heldout:.4f}; updates {update['bfloat16']:.2f} s, last loss {losses['bfloat16']:.4f}\n  next "
            f"noise: anew {fresh.steps} steps to {fresh.gap_heldout:.4f} at norm {fresh.norm:.1f}, past the boundary "
            f"{further.steps} to {further.gap_heldout:.4f} at {further.norm:.1f}"
        )
    figures = {name: round(statistics.median(values), 3) for name, values in ratios.items()}
    print(to_json(run_record(vars(args), **figures), indent=None))


if __name__ == "__main__":
    main()
