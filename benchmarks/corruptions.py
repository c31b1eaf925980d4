"""The 15 corruptions: images a second by `nslib.data.corruptions` and by the library, imagecorruptions-imaug.

    python benchmarks/corruptions.py --size 224

Both corrupt the same images at all five severities: the library in worker processes of one thread each (two, as many as
the cores for which the goal is set), seeded for each image; ours in this process with torch's default threads, as one
batch. Rounds of the two are interleaved, corruption by corruption, so that a drift of the machine's speed falls on
both, and each figure is the median round. What is made once (compiled loops, tables, the zoom matrix, frost pictures)
is made in a round off the clock. `ratio` is the library's time over all 15 over ours.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time

import numpy as np
import torch

from nslib.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from nslib.data.shapes import render
from nslib.runtime import run_record, to_json

_worker_images: list[np.ndarray] = []


def start_worker(images: np.ndarray) -> None:
    """Keep the images (N, H, W, 3) uint8, and leave the other core to the other worker."""
    import cv2

    cv2.setNumThreads(1)
    _worker_images.extend(images)


def by_library(task: tuple[str, int, int]) -> np.ndarray:
    """One image at one severity by the library, seeded by what it is."""
    import imagecorruptions

    name, severity, index = task
    seed = CORRUPTIONS.index(name) * 10**6 + severity * 10**5 + index
    np.random.seed(seed)  # noqa: NPY002 (the library draws from numpy's global generator, but for two corruptions)
    more = {"seed": seed} if name in ("impulse_noise", "glass_blur") else {}
    return imagecorruptions.corrupt(_worker_images[index], severity=severity, corruption_name=name, **more)


def seconds(call) -> float:
    """How long it takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def line(count: int, library: float, own: float) -> str:
    """Speeds of the two that took these seconds for `count` images."""
    return f"library {count / library:6.0f} images/s, ours {count / own:6.0f}, ratio {library / own:6.2f}"


def main() -> None:
    """Print a line for each corruption and close with the record as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="processes of the library")
    args = parser.parse_args()

    images = render("val", range(args.images), size=args.size).images
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    count = args.images * len(SEVERITIES)
    os.environ |= {"OMP_NUM_THREADS": "1"}  # for the workers; torch has read it
    context = multiprocessing.get_context("spawn")
    medians: dict[str, tuple[float, float]] = {}
    with context.Pool(args.workers, start_worker, (pixels,)) as pool:
        for name in CORRUPTIONS:
            tasks = [(name, severity, i) for severity in SEVERITIES for i in range(args.images)]
            chunk = -(-len(tasks) // (args.workers * 8))

            def theirs(tasks=tasks, chunk=chunk):
                pool.map(by_library, tasks, chunksize=chunk)

            def ours(name=name):
                for severity in SEVERITIES:
                    corrupt(images, name, severity, indices=range(args.images))

            times = [(seconds(theirs), seconds(ours)) for _ in range(args.rounds + 1)][1:]
            library, own = (statistics.median(column) for column in zip(*times, strict=True))
            medians[name] = library, own
            print(f"{name:18} {line(count, library, own)}", flush=True)
    library, own = (sum(column) for column in zip(*medians.values(), strict=True))
    print(f"{'all 15':18} {line(count * len(CORRUPTIONS), library, own)}")
    print(f"{args.size} px, {args.workers} workers against {torch.get_num_threads()} threads, {count} images a round")
    ratios = {name: round(library / own, 2) for name, (library, own) in medians.items()}
    print(to_json(run_record(vars(args), ratio=round(library / own, 2), ratios=ratios), indent=None))


if __name__ == "__main__":
    main()
