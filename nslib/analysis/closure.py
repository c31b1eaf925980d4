"""Appendix D: is the eps-approximate nullspace closed under scaling and under combinations of two, as a space would be?

Combinations are judged on images that neither taught nor stopped the noises, in batches of noises x images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import pandas as pd
import torch
from torch import Tensor

from nslib.intervals import mean_estimate
from nslib.nullspace.membership import CleanPass, Pool, check_use, permute, probability_gap
from nslib.nullspace.stored import stored_noise
from nslib.runtime import generator
from nslib.studies import ClosureStudy
from nslib.vit.staged import StagedViT


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
        nearest = min(noise.gap_heldout for noise in found if not noise.converged)
        raise ValueError(
            f"{len(inside)} of {len(found)} noises got inside eps = {study.noise.eps}, closure needs two (the next "
            f"one's gap is {nearest:.2g}): raise closure.noise.steps or closure.noises, or lower closure.noise.limit"
        )
    draws = generator(seed)
    permuted = [permute(noise, generator=draws) for noise in inside]
    return {"learned": torch.cat(inside), "permuted": torch.cat(permuted)}


def typical(clean: CleanPass, gaps: Tensor, images: int) -> CleanPass:
    """So many of the clean images, in their order, that look like all of them, or all if there are no more.

    Few images drawn blindly may be much harder than the rest, or easier. Sorted by their gaps, these are at even
    distances, the middle one of each stretch.

    Args:
        gaps: (M,) of each image, its mean MSE probability over the noises.
    """
    count = min(images, len(clean))
    places = (2 * torch.arange(count) + 1) * len(clean) // max(2 * count, 1)
    return clean[gaps.argsort(stable=True).cpu()[places].sort().values]


@torch.no_grad()
def gap_matrix(model: StagedViT, clean: CleanPass, noises: Tensor, *, chunk: int = 256) -> Tensor:
    """MSE probability (J, M) of each noise (J, N, D) on each of the M clean images.

    Args:
        chunk: noises x images that go through the model at once; more are slower on a CPU, whose caches they leave.
    Raises:
        ValueError: the model is in training mode, no images, or noises that do not fit the model.
    """
    check_use(model, clean, noises[:1])
    rows = []
    for group in noises.split(max(1, chunk // len(clean))):
        row = []
        for u, z in zip(clean.tokens.split(chunk), clean.logits.split(chunk), strict=True):
            tokens = (group.unsqueeze(1) + u).flatten(0, 1)  # (J, M, N, D) -> (J M, N, D)
            gap = probability_gap(model.logits_from_tokens(tokens), z.repeat(len(group), 1))
            row.append(gap.reshape(len(group), len(u)))
        rows.append(torch.cat(row, dim=1))
    return torch.cat(rows)


def inside_each(model: StagedViT, clean: CleanPass, noises: Tensor, eps: float) -> Tensor:
    """Of each noise (J, N, D): is its mean gap over all images below eps? (J,), on the CPU.

    Gaps are never negative, so that a noise whose gaps on the images seen so far, a few more at a time, add up to
    M eps is outside; the other images are not asked about it.
    """
    step, total = 8, torch.zeros(len(noises))
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
    """Figure 5a: each noise times each scale, a row for each kind of noise and scale, columns as `measure`."""
    rows = []
    for kind, own in noises.items():
        for scale in scales:
            rows.append({"noise": kind, "scale": scale} | measure(model, clean, own * scale, eps))
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
    """Figure 5b: alpha v + beta v' over a fine grid.

    Each pair is judged on so many `images` of the M clean ones, the next pair on the next ones, and so round: the mean
    is then over nearly all of them at the price of a few. The share of pairs that are outside rests on those few each;
    `share_table` asks all images, at fewer nodes.

    Args:
        pairs: (P, 2) for each kind of noise.
    Returns:
        one row for each kind of noise, alpha and beta: mean over pairs and images, share of pairs `outside`, not below
        eps, and how many `pairs` and different images, `n`, there are.
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
        gaps = [gap_matrix(model, clean[turn], combine(own[pair], weights)).mean(1) for pair, turn in each]
        means = torch.stack(gaps).cpu()  # (P, G)
        tables.append(
            pd.DataFrame(
                {"noise": kind, "alpha": weights[:, 0], "beta": weights[:, 1], "value": means.mean(0)}
                | {"outside": (means >= eps).float().mean(0), "pairs": len(turns), "n": len(turns.unique())}
            ).round({"alpha": 6, "beta": 6})
        )
    return pd.concat(tables, ignore_index=True)


def share_table(
    model: StagedViT,
    clean: CleanPass,
    noises: dict[str, Tensor],
    pairs: Mapping[str, Tensor],
    values: Sequence[float],
    eps: float,
) -> pd.DataFrame:
    """Figure 5b at few nodes: the share of pairs whose alpha v + beta v' is `outside`, each judged on all M images.

    Args:
        pairs: (P, 2) for each kind of noise.
    Returns:
        one row for each kind of noise, alpha and beta, with how many `pairs` and images, `n`.
    """
    rows = []
    for kind, own in noises.items():
        for alpha, beta in product(values, repeat=2):
            mixed, which = _each_once(own, pairs[kind], alpha, beta)
            inside = inside_each(model, clean, mixed, eps)[which]
            node = {"noise": kind, "alpha": alpha, "beta": beta, "outside": 1 - inside.double().mean().item()}
            rows.append(node | {"pairs": len(which), "n": len(clean)})
    return pd.DataFrame(rows)


def line_table(
    model: StagedViT,
    clean: CleanPass,
    noises: dict[str, Tensor],
    pairs: Mapping[str, Tensor],
    weights: Sequence[float],
    eps: float,
) -> pd.DataFrame:
    """Convex combinations of two, alpha v + (1 - alpha) v', averaged over the `pairs` (P, 2) of each kind of noise; a
    row for each kind and alpha, columns as `measure`."""
    rows = []
    for kind, own in noises.items():
        for alpha in weights:
            mixed, which = _each_once(own, pairs[kind], alpha, 1 - alpha)
            place = {"noise": kind, "alpha": alpha, "pairs": len(which)}
            rows.append(place | measure(model, clean, mixed, eps, which=which))
    return pd.DataFrame(rows)


def combine(noises: Tensor, weights: Tensor) -> Tensor:
    """Noises (..., k, N, D) and weights (..., G, k) -> their combinations (..., G, N, D)."""
    return (weights.to(noises) @ noises.flatten(-2)).unflatten(-1, noises.shape[-2:])


def combine_pairs(noises: Tensor, pairs: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha v + beta v' of each of the pairs (P, 2) among noises (J, N, D) -> (P, N, D)."""
    return combine(noises[pairs], torch.tensor([[alpha, beta]])).flatten(0, 1)


def _each_once(noises: Tensor, pairs: Tensor, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """As `combine_pairs`, but each combination once, and which of them each pair's is, (P,): a noise whose weight is
    zero does not matter, so that pairs may be the same single noise."""
    distinct, which = (pairs * torch.tensor([alpha != 0, beta != 0])).unique(dim=0, return_inverse=True)
    return combine_pairs(noises, distinct, alpha, beta), which


def measure(
    model: StagedViT, clean: CleanPass, noises: Tensor, eps: float, *, which: Tensor | None = None
) -> dict[str, float]:
    """Of J noises (J, N, D) on M images: their mean `norm`; the mean gap with its interval over images; 5 % and 95 %
    quantiles of the noises' own gaps, `band_low` and `band_high`; the share of noises `outside`, not below eps.

    Args:
        which: (P,) of the J noises, in place of each of them once.
    """
    gaps, norms = gap_matrix(model, clean, noises), noises.flatten(1).norm(dim=1)
    if which is not None:
        gaps, norms = gaps[which], norms[which]
    means = gaps.mean(1)
    band = torch.quantile(means, torch.tensor([0.05, 0.95]).to(means)).tolist()
    spread = {"band_low": band[0], "band_high": band[1], "outside": (means >= eps).float().mean().item()}
    return {"norm": norms.mean().item()} | vars(mean_estimate(gaps.mean(0).cpu())) | spread
