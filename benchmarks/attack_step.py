"""PGD-10, as Madry's training and the columns of Table 2 take it, against a plain transcription on timm's own forward.

    python benchmarks/attack_step.py

Both climb the same cross-entropy from the same images with the same budget; the transcription goes through timm's
convolution and all of the last block, and asks for the gradient of the images alone, as ours does. Attacks of the two
are interleaved, so that a drift of the machine's speed falls on both. `ratio` is the transcription's median over ours.
Signs of gradients near zero fall either way, and the paths part there: how strong either attack is, is printed.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from noise_step import embedded, plainly
from torch.nn import functional as F

from nslib.attacks.gradient import pgd
from nslib.data.shapes import render
from nslib.models import load_model
from nslib.runtime import pick_device, run_record, to_json
from nslib.vit.staged import frozen

EPS, STEP, STEPS = 8 / 255, 2 / 255, 10


def transcription(model, images, labels):
    """PGD as printed: each step to the sign of the gradient, back into the budget, back into [0, 1]."""
    points = images
    with frozen(model):
        for _ in range(STEPS):
            points = points.detach().requires_grad_()
            loss = F.cross_entropy(plainly(model, embedded(model, points)), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, points)
            with torch.no_grad():
                moved = points + STEP * gradient.sign()
                points = torch.min(torch.max(moved, images - EPS), images + EPS).clamp(0, 1)
    return points.detach()


def ours(model, images, labels):
    """The same by the library."""
    return pgd(model, images, labels, eps=EPS, step=STEP, steps=STEPS)


def main() -> None:
    """Run the pairs, print the medians and what the attacks leave, and close with the record as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7, help="interleaved pairs of attacks, each on a batch of its own")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    device = pick_device(args.device)
    model = load_model(device=device)
    seconds, right = {"theirs": [], "ours": []}, {"theirs": 0, "ours": 0}
    for pair in range(args.pairs + 1):  # the first warms up
        images, labels = render("val", range(pair * args.batch, (pair + 1) * args.batch), device=device)
        for name, attack in (("theirs", transcription), ("ours", ours)):
            started = time.perf_counter()
            points = attack(model, images, labels)
            with torch.no_grad():
                right[name] += (model(points).argmax(1) == labels).sum().item()  # waits for a GPU too
            if pair:
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    seen = (args.pairs + 1) * args.batch
    print(f"median attack on {args.batch} images: {medians['theirs']:.3f} s, ours {medians['ours']:.3f} s")
    print(f"still right of {seen}: {right['theirs']} after theirs, {right['ours']} after ours")
    ratio = round(medians["theirs"] / medians["ours"], 3)
    print(to_json(run_record(vars(args), ratio=ratio), indent=None))


if __name__ == "__main__":
    main()
