"""One image disguised as another: seconds for all of its patches, and the same problem by scipy's SLSQP.

    python benchmarks/disguise.py

On the clock is all that Eq. (12) needs for a legal picture: the bounded solver for every patch, and 256 levels chosen
so that the embedding sees little of the rounding; the singular vectors of the patch embedding are computed once, off
the clock. ViT-Ti/16 with random weights, whose patches have 768 pixels and 192 constraints. SLSQP solves single patches
of the same images, in turn with ours. `ratio` is its seconds a patch over those of our solver, rounding left out.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from scipy.optimize import minimize

from nslib.analysis.pictures import eight_bit
from nslib.analysis.watermark import nearest_legal, round_unseen
from nslib.data.shapes import render
from nslib.models import load_model
from nslib.nullspace.patch import PatchNullspace
from nslib.runtime import run_record, to_json


def timed(action):
    """Seconds, and what the action returned."""
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def by_scipy(null, own, goal) -> np.ndarray:
    """The legal patch (C P P,) nearest to the goal that is seen as its own is."""
    matrix = null.seen.numpy()
    found = minimize(
        lambda x: ((x - goal) ** 2).sum() / 2,
        own,
        jac=lambda x: x - goal,
        bounds=[(0, 1)] * len(own),
        constraints={"type": "eq", "fun": lambda x: matrix @ (x - own), "jac": lambda x: matrix},
        method="SLSQP",
        options={"ftol": 1e-6, "maxiter": 200},
    )
    if not found.success:
        raise RuntimeError(f"SLSQP: {found.message}")
    return found.x


def main() -> None:
    """Disguise several images, print a line for each and the medians, and close with the record as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=7)
    parser.add_argument("--patches", type=int, default=3, help="of these images one patch each goes to scipy")
    args = parser.parse_args()

    model = load_model("vit_tiny_patch16_224", "random")
    null = PatchNullspace(model)
    images = eight_bit(render("val", range(args.images + 1), size=model.image_shape[1]).images)
    round_unseen(null, nearest_legal(null, images[:1], images[1:2]))  # warm up
    solving, whole, theirs, apart = [], [], [], []
    for i in range(args.images):
        pair = images[i : i + 1], images[i + 1 : i + 2]
        solved, legal = timed(lambda pair=pair: nearest_legal(null, *pair))
        rounded, _ = timed(lambda legal=legal: round_unseen(null, legal))
        solving.append(solved)
        whole.append(solved + rounded)
        told = f"image {i}: {solved:.3f} s for {model.token_shape[0]} patches, {rounded:.3f} s for 256 levels"
        if i < args.patches:
            place = model.token_shape[0] // 2 + i
            own, goal, ours = (null.unfold(x)[0, place].double().numpy() for x in (*pair, legal))
            seconds, found = timed(lambda own=own, goal=goal: by_scipy(null, own, goal))
            theirs.append(seconds)
            apart.append(float(np.abs(found - ours).max()))
            told += f"; scipy {seconds:.2f} s for one patch, pixels within {apart[-1]:.1e}"
        print(told, flush=True)
    figures = {
        "seconds": statistics.median(whole),
        "ratio": statistics.median(theirs) / (statistics.median(solving) / model.token_shape[0]),
        "apart": max(apart),
    }
    print(f"{model.image_shape[1]} px, {torch.get_num_threads()} threads, medians of {args.images} images")
    figures = {name: float(f"{value:.3g}") for name, value in figures.items()}
    print(to_json(run_record(vars(args), **figures), indent=None))


if __name__ == "__main__":
    main()
