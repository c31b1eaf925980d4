"""Images a second that the embedded data set is drawn at.

python benchmarks/render.py --size 48
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from nslib.data.shapes import render
from nslib.runtime import pick_device, run_record, to_json


def main() -> None:
    """Draw fresh images of split train several times; print each rate and close with the record as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=48, help="image side in pixels")
    parser.add_argument("--count", type=int, default=4096, help="images of a run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()

    device = pick_device(args.device)
    rates = []
    for run in range(args.runs + 1):  # the first warms up
        started = time.perf_counter()
        render("train", range(run * args.count, (run + 1) * args.count), size=args.size, device=device)
        if device.type == "cuda":
            torch.cuda.synchronize()
        rates.append(args.count / (time.perf_counter() - started))
    print(
        f"{args.size} px on {device}, {torch.get_num_threads()} threads: " + ", ".join(f"{r:,.0f}" for r in rates[1:])
    )
    rate = round(statistics.median(rates[1:]))
    print(to_json(run_record(vars(args), images_per_second=rate), indent=None))


if __name__ == "__main__":
    main()
