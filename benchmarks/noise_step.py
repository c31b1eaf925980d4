"""One step of `learn_noise` against a plain transcription of Algorithm 1, on the same model, batches and starts.

    python benchmarks/noise_step.py

The transcription recomputes patch tokens and clean logits each step, lets every parameter take a gradient, and computes
the patch embedding and all of the last block as timm does. Steps of the two are interleaved, so that a drift of the
machine's speed falls on both. `ratio` is the transcription's median step over ours; `ratio_to_eps` its seconds to the
same held-out eps from the same starts over ours, with our held-out tests on the clock and its own off it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from itertools import pairwise

import torch

from nslib.config import NoiseConfig
from nslib.data.shapes import render
from nslib.models import load_model
from nslib.nullspace.encoder import learn_noise, start_noise
from nslib.nullspace.membership import inside, make_pool, probability_gap
from nslib.runtime import generator, pick_device, run_record, to_json


def embedded(model, images):
    """Images (B, C, H, W) -> tokens (B, N, D) by timm's own convolution."""
    return model.vit.patch_embed((images - model.mean) / model.std)


def plainly(model, tokens):
    """Tokens (B, N, D) -> logits (B, K) by timm's own forward, every token through every block."""
    return model.classify(model.encode(tokens))


def transcription(model, images, pool, cfg, seed) -> list[float]:
    """Algorithm 1 as printed, but stopped by held-out images off the clock; seconds of each step."""
    draws = generator(seed)
    noise = start_noise(model, cfg.limit, generator=draws).requires_grad_(True)
    optimizer = torch.optim.AdamW([noise], lr=cfg.lr, weight_decay=cfg.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=cfg.steps)
    times, batches = [], same_batches(len(images), cfg.batch, draws)
    while not inside(model, pool.heldout, noise.detach(), cfg.eps).inside:
        started = time.perf_counter()
        tokens = embedded(model, images[next(batches)])
        with torch.no_grad():
            clean = plainly(model, tokens)
        noisy = plainly(model, tokens + noise)
        probability_gap(noisy.detach(), clean).mean().item()  # its own test, on the batch
        loss = (noisy - clean).norm(dim=1).mean()
        model.zero_grad(set_to_none=True)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if model.device.type == "cuda":
            torch.cuda.synchronize()  # what is still queued belongs to this step, not to the test off the clock
        times.append(time.perf_counter() - started)
    return times


def same_batches(count, size, draws):
    """Rows in the order in which `learn_noise` visits its pool."""
    while True:
        for rows in torch.randperm(count, generator=draws).split(size):
            if len(rows) == size:
                yield rows


def ours(model, pool, cfg, seed):
    """Seconds between the callbacks of neighbouring steps, and what was learned."""
    clock = []
    learned = learn_noise(
        model, pool, cfg, generator=generator(seed), on_step=lambda *_: clock.append(time.perf_counter())
    )
    return [after - before for before, after in pairwise(clock)], learned


def main() -> None:
    """Run the pairs, print a line for each and the medians, and close with the record as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7, help="interleaved pairs of runs, each from a start of its own")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    device = pick_device(args.device)
    model = load_model(device=device)
    images, _ = render("train", range(2048 + 512), device=device)
    pool, images = make_pool(model, images, heldout=512), images[:2048]
    cfg = NoiseConfig(batch=args.batch)
    fixed = replace(cfg, eps=None, steps=15)  # no held-out tests between its steps
    ours(model, pool, fixed, seed=0), transcription(model, images, pool, replace(cfg, eps=0.3), seed=0)  # warm up

    step, whole = {"ours": [], "theirs": []}, []
    for seed in range(args.pairs):
        theirs = transcription(model, images, pool, cfg, seed)
        single, _ = ours(model, pool, fixed, seed)
        _, learned = ours(model, pool, cfg, seed)
        step["theirs"] += theirs
        step["ours"] += single
        whole.append(sum(theirs) / learned.seconds)
        print(
            f"start {seed}: {len(theirs)} steps in {sum(theirs):.2f} s; ours {learned.steps} in {learned.seconds:.2f} s"
            f" with {len(learned.trace.tests)} held-out tests, to a held-out gap of {learned.gap_heldout:.4f}"
        )
    medians = {name: statistics.median(times) for name, times in step.items()}
    print(f"median step: {1e3 * medians['theirs']:.1f} ms, ours {1e3 * medians['ours']:.1f} ms, batch {args.batch}")
    figures = {"ratio": medians["theirs"] / medians["ours"], "ratio_to_eps": statistics.median(whole)}
    figures = {name: round(value, 3) for name, value in figures.items()}
    print(to_json(run_record(vars(args), **figures), indent=None))


if __name__ == "__main__":
    main()
