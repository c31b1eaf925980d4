"""Beyond Appendix D: plain sums, convex combinations of more than two noises, and how many may be mixed freely."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from nslib.analysis.closure import combine, combine_pairs, inside_each, measure
from nslib.intervals import share_estimate
from nslib.nullspace.membership import CleanPass
from nslib.runtime import generator
from nslib.studies import ClosureStudy
from nslib.vit.staged import StagedViT


def further_table(
    model: StagedViT, clean: CleanPass, noises: dict[str, Tensor], pairs: Tensor, study: ClosureStudy, *, seed: int
) -> pd.DataFrame:
    """The plain sum of two, pairs (P, 2), and P convex combinations of more with weights uniform on the simplex.

    Returns:
        one row for each kind of noise and combination; columns as `measure`.
    """
    rows = []
    for kind, own in noises.items():
        draws = generator(seed)
        mixtures = {"sum of 2": combine_pairs(own, pairs, 1, 1)}
        for members in study.convex:
            if members <= len(own):
                chosen = _draw_members(len(own), members, len(pairs), draws)
                simplex = torch.rand(len(pairs), 1, members, generator=draws).log()
                mixtures[f"convex of {members}"] = combine(own[chosen], simplex / simplex.sum(2, keepdim=True))[:, 0]
        for name, mixed in mixtures.items():
            rows.append({"noise": kind, "combination": name} | measure(model, clean, mixed, study.noise.eps))
    return pd.DataFrame(rows)


def span_table(
    model: StagedViT, clean: CleanPass, noises: dict[str, Tensor], study: ClosureStudy, *, seed: int
) -> pd.DataFrame:
    """How many noises may be mixed freely: directions of coefficients uniform in R^k, scaled to one norm.

    The norm is the median of the learned ones, for `permuted` too. Coefficients are of `either sign`, which asks for a
    space, or all `positive`, which asks for a cone.

    Returns:
        one row for each kind of noise, sign and k: share of study.draws combinations inside, with Wilson's interval.
    """
    norm = noises["learned"].flatten(1).norm(dim=1).median()
    rows = []
    for kind, own in noises.items():
        for sign in ("either sign", "positive"):
            draws = generator(seed)
            for k in (k for k in study.spans if k <= len(own)):
                chosen = _draw_members(len(own), k, study.draws, draws)
                weights = torch.randn(study.draws, 1, k, generator=draws)
                weights = weights.abs() if sign == "positive" else weights
                mixed = combine(own[chosen], weights)[:, 0]
                mixed = mixed * (norm / mixed.flatten(1).norm(dim=1)).reshape(-1, 1, 1)
                inside = share_estimate(inside_each(model, clean, mixed, study.noise.eps))
                rows.append({"noise": kind, "sign": sign, "k": k, "norm": norm.item()} | vars(inside))
    return pd.DataFrame(rows)


def largest_span(table: pd.DataFrame, *, share: float = 0.95) -> int:
    """The largest k of a `span_table`'s rows up to which, at every k, this share of combinations is inside; else 0."""
    rows = table.sort_values("k")
    kept = rows[(rows.value >= share).cummin()]
    return int(kept.k.max()) if len(kept) else 0


def _draw_members(noises: int, members: int, draws: int, generator: torch.Generator) -> Tensor:
    """(draws, members) different noises each."""
    return torch.rand(draws, noises, generator=generator).argsort(1)[:, :members]
