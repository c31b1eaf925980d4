"""Appendix D: is the eps-approximate nullspace closed under scaling, sums and convex combinations, as a space would be?

Combinations are judged on images that neither taught nor stopped the noises, in batches of noises x images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from nslib.config import ClosureStudy
from nslib.intervals import mean_estimate, share_estimate
from nslib.nullspace.membership import CleanPass, Pool, permute, probability_gap
from nslib.nullspace.stored import stored_noise
from nslib.runtime import generator
from nslib.staged import StagedViT


def closure_noises(model: StagedViT, pool: Pool, study: ClosureStudy, *, seed: int) -> dict[str, Tensor]:
    """Noises (M, N, D) from different starts that got inside the set, `learned`, and each of them `permuted`.

    Raises:
        ValueError: no eps to be inside of, or fewer than two noises got there.
    """
    if study.noise.eps is None:
        raise ValueError("closure.noise.eps must be a number: without it there is no set to be inside of")
    found = [stored_noise(model, pool, study.noise, seed=seed + i) for i in range(study.noises)]
    inside = [noise.noise for noise in found if noise.converged]
    if len(inside) < 2:
        raise ValueError(
            f"{len(inside)} of {len(found)} noises got inside eps = {study.noise.eps}, closure needs two: "
            "raise closure.noise.steps or lower closure.noise.limit"
        )
    draws = generator(seed)
    permuted = [permute(noise, generator=draws) for noise in inside]
    return {"learned": torch.cat(inside), "permuted": torch.cat(permuted)}


@torch.no_grad()
def gap_matrix(model: StagedViT, clean: CleanPass, noises: Tensor, *, chunk: int = 256) -> Tensor:
    """MSE probability (J, M) of each noise (J, N, D) on each of the M clean images.

    Args:
        chunk: noises x images that go through the model at once; more are slower on a CPU, whose caches they leave.
    Raises:
        ValueError: the model is in training mode, no images, or noises that do not fit the model.
    """
    model.check_frozen_use()
    if not len(clean):
        raise ValueError("the clean pass is empty: it needs at least one image")
    model.check_noise(noises[:1])
    rows = []
    for group in noises.split(max(1, chunk // len(clean))):
        row = []
        for u, z in zip(clean.tokens.split(chunk), clean.logits.split(chunk), strict=True):
            tokens = (group.unsqueeze(1) + u).flatten(0, 1)  # (J, M, N, D) -> (J M, N, D)
            gap = probability_gap(model.logits_from_tokens(tokens), z.repeat(len(group), 1))
            row.append(gap.reshape(len(group), len(u)))
        rows.append(torch.cat(row, dim=1))
    return torch.cat(rows)


def inside_each(model: StagedViT, clean: CleanPass, noises: Tensor, eps: float, *, step: int = 8) -> Tensor:
    """Of each noise (J, N, D): is its mean gap over all images below eps? (J,), on the CPU.

    Gaps are never negative, so that a noise whose gaps on the images seen so far, `step` more at a time, add up to
    M eps is outside; the other images are not asked about it.
    """
    total = torch.zeros(len(noises))
    inside = torch.ones(len(noises), dtype=torch.bool)
    for start in range(0, len(clean), step):
        total[inside] += gap_matrix(model, clean[start : start + step], noises[inside.to(noises.device)]).sum(1).cpu()
        inside = total < eps * len(clean)  # False on NaN
        if not inside.any():
            break
    return inside


def ticks(reach: float, step: float) -> list[float]:
    """-reach, ..., 0, ..., reach in steps, zero and (if a multiple) one exactly.

    Raises:
        ValueError: reach is no multiple of step.
    """
    half = round(reach / step)
    if half < 1 or abs(half * step - reach) > 1e-9:
        raise ValueError(f"step must divide {reach}, got {step}: take one such as {reach / 15:g}")
    return [round(i * step, 9) for i in range(-half, half + 1)]


def scale_table(
    model: StagedViT, clean: CleanPass, noises: dict[str, Tensor], scales: Sequence[float], eps: float
) -> pd.DataFrame:
    """Figure 5a: each noise times each scale, a row for each kind of noise and scale, columns as `summarise`."""
    rows = []
    for kind, own in noises.items():
        for scale in scales:
            rows.append({"noise": kind, "scale": scale} | summarise(gap_matrix(model, clean, own * scale), eps))
    return pd.DataFrame(rows)


def draw_pairs(noises: int, pairs: int, *, generator: torch.Generator) -> Tensor:
    """(pairs, 2): so many different pairs of different noises, in random order.

    Raises:
        ValueError: there are not so many.
    """
    every = torch.combinations(torch.arange(noises))
    if pairs > len(every):
        raise ValueError(f"{noises} noises have {len(every)} pairs, asked for {pairs}: learn more or ask for fewer")
    chosen = every[torch.randperm(len(every), generator=generator)[:pairs]]
    swap = torch.rand(pairs, 1, generator=generator) < 0.5
    return torch.where(swap, chosen.flip(1), chosen)


def grid_table(
    model: StagedViT,
    clean: CleanPass,
    noises: dict[str, Tensor],
    pairs: Mapping[str, Tensor],
    values: Sequence[float],
    eps: float,
    *,
    images: int,
) -> pd.DataFrame:
    """Figure 5b: alpha v + beta v' over a grid.

    Each pair is judged on so many `images` of the M clean ones, the next pair on the next ones, and so round: the mean
    is then over nearly all of them at the price of a few. A share of pairs is blurred where few images judge a pair.

    Args:
        pairs: (P, 2) for each kind of noise.
    Returns:
        one row for each kind of noise, alpha and beta: mean over pairs and images, share of pairs beyond eps, and how
        many `pairs` and different images, `n`, there are.
    Raises:
        ValueError: images outside 1 ... M.
    """
    if not 1 <= images <= len(clean):
        raise ValueError(f"images must be in 1..{len(clean)}, the clean ones, got {images}")
    axis = torch.tensor(values)
    weights = torch.cartesian_prod(axis, axis)  # (G, 2), alpha and beta
    tables = []
    for kind, own in noises.items():
        turns = torch.arange(len(pairs[kind]) * images).reshape(-1, images) % len(clean)
        each = zip(pairs[kind], turns, strict=True)
        means = [gap_matrix(model, clean[turn], combine(own[pair], weights)).mean(1) for pair, turn in each]
        mean = torch.stack(means)  # (P, G)
        tables.append(
            pd.DataFrame(
                {"noise": kind, "alpha": weights[:, 0], "beta": weights[:, 1]}
                | {"value": mean.mean(0).cpu(), "outside": (mean >= eps).float().mean(0).cpu()}
                | {"pairs": len(turns), "n": len(turns.unique())}
            ).round({"alpha": 6, "beta": 6})
        )
    return pd.concat(tables, ignore_index=True)


def line_table(
    model: StagedViT, clean: CleanPass, noises: dict[str, Tensor], pairs: Tensor, weights: Sequence[float], eps: float
) -> pd.DataFrame:
    """Convex combinations of two, alpha v + (1 - alpha) v', averaged over pairs (P, 2); columns as `summarise`."""
    rows = []
    for kind, own in noises.items():
        for alpha in weights:
            mixed = combine(own[pairs], torch.tensor([[alpha, 1 - alpha]])).flatten(0, 1)
            rows.append({"noise": kind, "alpha": alpha} | summarise(gap_matrix(model, clean, mixed), eps))
    return pd.DataFrame(rows)


def further_table(
    model: StagedViT, clean: CleanPass, noises: dict[str, Tensor], pairs: Tensor, study: ClosureStudy, *, seed: int
) -> pd.DataFrame:
    """Beyond the paper: the plain sum of two, and convex combinations of more with weights uniform on the simplex.

    Returns:
        one row for each kind of noise and combination; columns as `summarise`.
    """
    rows = []
    for kind, own in noises.items():
        draws = generator(seed)
        mixtures = {"sum of 2": combine(own[pairs], torch.ones(1, 2)).flatten(0, 1)}
        for members in study.convex:
            if members <= len(own):
                chosen = _draw_members(len(own), members, len(pairs), draws)
                simplex = torch.rand(len(pairs), 1, members, generator=draws).log()
                mixtures[f"convex of {members}"] = combine(own[chosen], simplex / simplex.sum(2, keepdim=True))[:, 0]
        for name, mixed in mixtures.items():
            gaps = gap_matrix(model, clean, mixed)
            rows.append({"noise": kind, "combination": name} | summarise(gaps, study.noise.eps))
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
    """The largest k of a `span_table`'s rows of which this share of combinations is inside; 0 if there is none."""
    kept = table[table.value >= share]
    return int(kept.k.max()) if len(kept) else 0


def combine(noises: Tensor, weights: Tensor) -> Tensor:
    """Noises (..., k, N, D) and weights (..., G, k) -> their combinations (..., G, N, D)."""
    return (weights.to(noises) @ noises.flatten(-2)).unflatten(-1, noises.shape[-2:])


def summarise(gaps: Tensor, eps: float) -> dict[str, float]:
    """Of gaps (J, M), J noises on M images: the mean with its interval over images; 5 % and 95 % quantiles of the J
    noises' own means, `band_low` and `band_high`; and the share of noises that are `outside`, not below eps."""
    means = gaps.mean(1)
    band = torch.quantile(means, torch.tensor([0.05, 0.95]).to(means)).tolist()
    outside = (means >= eps).float().mean().item()
    return vars(mean_estimate(gaps.mean(0).cpu())) | {
        "band_low": band[0],
        "band_high": band[1],
        "outside": outside,
    }


def _draw_members(noises: int, members: int, draws: int, generator: torch.Generator) -> Tensor:
    """(draws, members) different noises each."""
    return torch.rand(draws, noises, generator=generator).argsort(1)[:, :members]
