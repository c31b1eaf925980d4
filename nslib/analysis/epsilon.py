"""The eps-approximate nullspace from inside: how noise gets in, what tells that it is in, how far out it reaches."""

from __future__ import annotations

from dataclasses import asdict, replace

import pandas as pd

from nslib.analysis.controls import control_directions
from nslib.intervals import mean_estimate
from nslib.nullspace.encoder import LearnedNoise
from nslib.nullspace.membership import CleanPass, Pool, agreement, boundary_scale
from nslib.nullspace.stored import stored_noise
from nslib.studies import ApproximateStudy
from nslib.vit.staged import StagedViT

VERSION = 1  # part of every kept reach: raise it when the same noises reach elsewhere
STOPPING = ("heldout", "batch")


def eps_noises(
    model: StagedViT, pool: Pool, study: ApproximateStudy, *, seed: int, stops: tuple[str, ...] = STOPPING
) -> dict[tuple[float, str, int], LearnedNoise]:
    """A noise for each (eps, kind of stopping, start): the same starts and batches for all of them."""
    keys = [(eps, stop, start) for eps in study.eps for stop in stops for start in range(study.starts)]
    return {
        (eps, stop, start): stored_noise(model, pool, replace(study.noise, eps=eps, stop_on=stop), seed=seed + start)
        for eps, stop, start in keys
    }


def stopping_table(
    model: StagedViT, clean: CleanPass, noises: dict[tuple[float, str, int], LearnedNoise]
) -> pd.DataFrame:
    """One row a noise: what its stopping test said, and what images say that it never saw (gap with interval)."""
    rows = []
    for (eps, stop, start), found in noises.items():
        fresh = agreement(model, clean, found.noise)
        rows.append(
            {"eps": eps, "stop_on": stop, "start": start, "steps": found.steps, "seconds": found.seconds}
            | {"tests": len(found.trace.tests), "norm": found.norm, "converged": found.converged}
            | {"gap_batch": found.gap_batch, "gap_heldout": found.gap_heldout}
            | asdict(mean_estimate(fresh.gap.cpu()))
            | {"match": fresh.match.float().mean().item()}
        )
    return pd.DataFrame(rows)


def reach_table(
    model: StagedViT,
    clean: CleanPass,
    noises: dict[tuple[float, str, int], LearnedNoise],
    *,
    seed: int,
    controls: bool = True,
) -> pd.DataFrame:
    """How long a noise may be before it leaves the eps set, along learned and, as controls, permuted and random ones.

    One row a direction: norm at the first exit and whether there was one, tested on `clean`. Without controls the way
    begins at half of each noise: for what further images say, at a third of the cost.
    """
    rows, begin = [], None if controls else 0.5
    for (eps, stop, start), found in noises.items():
        if stop != "heldout":
            continue
        directions = control_directions(found.noise, seed=seed + start) if controls else {"learned": found.noise}
        for kind, direction in directions.items():
            edge = boundary_scale(model, clean, direction, eps, start=begin)
            rows.append(
                {"eps": eps, "start": start, "noise": kind, "norm": edge.norm, "gap": edge.gap, "reached": edge.reached}
            )
    return pd.DataFrame(rows)


def reach_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean norm at the boundary over the starts, smallest and largest, for each eps and kind of noise."""
    grouped = table.groupby(["eps", "noise"], sort=False).norm
    return grouped.agg(value="mean", low="min", high="max").reset_index()
