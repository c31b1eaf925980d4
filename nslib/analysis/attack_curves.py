"""Accuracy against the strength of an attack, and whether the attacks behave as attacks must."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nslib.attacks.budget import check_budget
from nslib.attacks.gradient import fgsm, pgd
from nslib.intervals import share_estimate
from nslib.models import StagedViT
from nslib.runtime import generator


def attack_curves(
    model: StagedViT,
    images: Tensor,
    labels: Tensor,
    eps_values: Sequence[float],
    *,
    steps: int,
    seed: int,
    batch: int = 64,
) -> pd.DataFrame:
    """Top-1 in percent under FGSM, PGD (steps of eps / 4) and random signs of size eps, as the control.

    Args:
        images: (M, C, H, W) in [0, 1]; labels: (M,).
        eps_values: linf budgets in pixel units.
    Returns:
        columns attack, eps (in 1/255), value, low, high, n.
    Raises:
        ValueError: eps negative or above 1, or as the attacks.
    """
    attacks: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
        "random signs": lambda x, y, eps: random_signs(x, eps, seed=seed),
        "FGSM": lambda x, y, eps: fgsm(model, x, y, eps=eps),
        "PGD": lambda x, y, eps: pgd(model, x, y, eps=eps, step=eps / 4, steps=steps),
    }
    rows = []
    for name, attack in attacks.items():
        for eps in eps_values:
            hits = [
                right(model, attack(x, y, eps), y)
                for x, y in zip(images.split(batch), labels.split(batch), strict=True)
            ]
            found = {k: v if k == "n" else 100 * v for k, v in asdict(share_estimate(np.concatenate(hits))).items()}
            found.pop("seeds")
            rows.append({"attack": name, "eps": round(255 * eps, 4), **found})
    return pd.DataFrame(rows)


def random_signs(images: Tensor, eps: float, *, seed: int) -> Tensor:
    """Images (B, C, H, W) with every pixel moved by +-eps at random, clamped to [0, 1]."""
    check_budget(eps)
    signs = torch.randint(0, 2, images.shape, generator=generator(seed)) * 2 - 1
    return (images + eps * signs.to(images)).clamp(0, 1)


def right(model: StagedViT, images: Tensor, labels: Tensor) -> np.ndarray:
    """Which images (B, C, H, W) the model gets right, (B,) bool."""
    with torch.inference_mode():
        return (model(images).argmax(1) == labels).cpu().numpy()


def pgd_hits(model: StagedViT, images: Tensor, labels: Tensor, *, eps: float, steps: int) -> np.ndarray:
    """Which images (B, C, H, W) the model gets right under PGD in steps of eps / 4, (B,) bool."""
    return right(model, pgd(model, images, labels, eps=eps, step=eps / 4, steps=steps), labels)


def sanity_table(curves: pd.DataFrame, auto_hits: np.ndarray, pgd_hits: np.ndarray) -> pd.DataFrame:
    """What must be true of attacks that work, each with the two figures (top-1 in percent) that show it.

    Args:
        curves: of `attack_curves`, with eps = 0 among its budgets.
        auto_hits, pgd_hits: (n,) right under AutoAttack and under PGD, same images and budget.
    Returns:
        columns check, left, right, holds.
    """
    wide = curves.pivot(index="eps", columns="attack", values="value").sort_index()
    clean, weakest, strongest = wide.iloc[0], wide.iloc[1], wide.iloc[-1]
    steps_up = wide[["FGSM", "PGD"]].diff().iloc[1:].max()
    checks = [
        ("eps = 0 changes nothing: FGSM, clean", clean["FGSM"], clean["random signs"], clean.nunique() == 1),
        ("PGD falls with eps: largest, smallest eps", strongest["PGD"], weakest["PGD"], steps_up["PGD"] <= 2),
        ("PGD reaches 0: at the largest eps, limit", strongest["PGD"], 2.0, strongest["PGD"] <= 2),
        ("PGD is no weaker than FGSM: means over eps", wide["PGD"].mean(), wide["FGSM"].mean(),
         bool((wide["PGD"] <= wide["FGSM"] + 1).all())),
        ("AutoAttack is no weaker than PGD", 100 * auto_hits.mean(), 100 * pgd_hits.mean(),
         auto_hits.sum() <= pgd_hits.sum()),
        ("random signs do far less: PGD, random, mean over eps > 0", wide["PGD"].iloc[1:].mean(),
         wide["random signs"].iloc[1:].mean(), wide["PGD"].iloc[1:].mean() < wide["random signs"].iloc[1:].mean() - 20),
    ]  # fmt: skip
    return pd.DataFrame(checks, columns=["check", "left", "right", "holds"])
