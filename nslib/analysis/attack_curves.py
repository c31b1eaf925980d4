"""Accuracy against the strength of an attack, and whether the attacks behave as attacks must."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nslib.attacks.budget import check_budget
from nslib.attacks.gradient import fgsm, pgd
from nslib.intervals import share_estimate
from nslib.runtime import generator
from nslib.store import cached, model_digest, tensor_digest
from nslib.vit.staged import StagedViT

_BATCH = 64
_ROBUST_TOO = ("PGD reaches 0: at the largest eps, limit", "random signs do far less: PGD, random, mean over eps > 0")
VERSION = 2  # part of every stored and kept result: raise it when the same settings give other hits


def attack_curves(
    model: StagedViT, images: Tensor, labels: Tensor, eps_values: Sequence[float], *, steps: int, seed: int
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
    asked = {"random signs": {"seed": seed}, "FGSM": {}, "PGD": {"steps": steps}}
    return pd.DataFrame(
        {"attack": name, **_point(eps, _hits(model, images, labels, name, eps, **told))}
        for name, told in asked.items()
        for eps in eps_values
    )


def pgd_curve(
    model: StagedViT, images: Tensor, labels: Tensor, eps_values: Sequence[float], *, steps: int
) -> pd.DataFrame:
    """Of `attack_curves` that of PGD alone: columns eps, value, low, high, n. Arguments and errors as there."""
    return pd.DataFrame([_point(e, pgd_hits(model, images, labels, eps=e, steps=steps)) for e in eps_values])


def _point(eps: float, hits: np.ndarray) -> dict[str, float]:
    found = share_estimate(hits).percent()
    return {"eps": round(255 * eps, 4), **{k: getattr(found, k) for k in ("value", "low", "high", "n")}}


def pgd_hits(model: StagedViT, images: Tensor, labels: Tensor, *, eps: float, steps: int) -> np.ndarray:
    """Which images (M, C, H, W) the model gets right under PGD in steps of eps / 4, (M,) bool."""
    return _hits(model, images, labels, "PGD", eps, steps=steps)


def _hits(model: StagedViT, images: Tensor, labels: Tensor, name: str, eps: float, **asked: int) -> np.ndarray:
    """Which images the model gets right under an attack, (M,) bool; kept, so that a killed run repeats no budget.

    Args:
        asked: settings of the attack.
    Raises:
        ValueError: model in training mode.
    """
    model.check_frozen_use()

    def compute() -> dict[str, Tensor]:
        draws = generator(asked.get("seed", 0))  # goes on from batch to batch: no two images have the same signs
        attack = {
            "random signs": lambda x, y: random_signs(x, eps, draws),
            "FGSM": lambda x, y: fgsm(model, x, y, eps=eps),
            "PGD": lambda x, y: pgd(model, x, y, eps=eps, step=eps / 4, **asked),
        }[name]
        pairs = zip(images.split(_BATCH), labels.split(_BATCH), strict=True)
        return {"right": torch.cat([right(model, attack(x, y), y) for x, y in pairs])}

    inputs = {"model": model_digest(model), "images": tensor_digest(images, labels)}
    key = {**inputs, "eps": eps, "batch": _BATCH, "attack": name, **asked}
    return cached("strength", key, compute, version=VERSION)["right"].numpy()


def random_signs(images: Tensor, eps: float, draws: torch.Generator) -> Tensor:
    """Images (B, C, H, W) with every pixel moved by +-eps at random, clamped to [0, 1]."""
    check_budget(eps)
    signs = torch.randint(0, 2, images.shape, generator=draws) * 2 - 1
    return (images + eps * signs.to(images)).clamp(0, 1)


@torch.no_grad()
def right(model: StagedViT, images: Tensor, labels: Tensor) -> Tensor:
    """Which images (B, C, H, W) the model gets right, (B,) bool on the CPU."""
    return (model(images).argmax(1) == labels).cpu()


def sanity_table(
    curves: pd.DataFrame, auto_hits: np.ndarray | None = None, pgd_hits: np.ndarray | None = None
) -> pd.DataFrame:
    """What must be true of attacks that work, each with the two figures (top-1 in percent) that show it.

    A mean over budgets gets the means of their intervals' ends: all budgets show the same images, so that this is not
    too narrow.

    Args:
        curves: of `attack_curves`, with eps = 0 among its budgets.
        auto_hits, pgd_hits: (n,) right under AutoAttack and under PGD, same images and budget; without them the check
            of AutoAttack is left out.
    Returns:
        columns check, left, left_low, left_high, right, right_low, right_high, n, holds.
    """
    wide = curves.pivot(index="eps", columns="attack", values="value").sort_index()
    clean, above = slice(0, 1), slice(1, None)
    weakest, strongest, all_eps = slice(1, 2), slice(-1, None), slice(None)

    def at(attack: str, budgets: slice) -> pd.Series:
        """Value, low and high, meaned over some of the budgets in their order."""
        rows = curves[curves.attack == attack].sort_values("eps")
        return rows[["value", "low", "high"]].iloc[budgets].mean()

    n, limit = int(curves.n.min()), pd.Series({"value": 2.0, "low": np.nan, "high": np.nan})
    steps_up = wide["PGD"].diff().iloc[1:].max()
    gap = at("random signs", above).value - at("PGD", above).value
    checks = [
        ("eps = 0 changes nothing: FGSM, clean", at("FGSM", clean), at("random signs", clean), n,
         wide.iloc[0].nunique() == 1),
        ("PGD falls with eps: largest, smallest eps", at("PGD", strongest), at("PGD", weakest), n, steps_up <= 2),
        (_ROBUST_TOO[0], at("PGD", strongest), limit, n, at("PGD", strongest).value <= 2),
        ("PGD is no weaker than FGSM: means over eps", at("PGD", all_eps), at("FGSM", all_eps), n,
         bool((wide["PGD"] <= wide["FGSM"] + 1).all())),
        (_ROBUST_TOO[1], at("PGD", above), at("random signs", above), n, gap > 20),
    ]  # fmt: skip
    if auto_hits is not None and pgd_hits is not None:
        auto, by_pgd = (100 * pd.Series(asdict(share_estimate(hits))) for hits in (auto_hits, pgd_hits))
        check = ("AutoAttack is no weaker than PGD", auto, by_pgd, len(auto_hits), auto_hits.sum() <= pgd_hits.sum())
        checks.append(check)
    rows = [
        {"check": check, "left": left.value, "left_low": left.low, "left_high": left.high, "right": right.value,
         "right_low": right.low, "right_high": right.high, "n": n, "holds": holds}
        for check, left, right, n, holds in checks
    ]  # fmt: skip
    return pd.DataFrame(rows)


def complaints(sanity: pd.DataFrame) -> tuple[str, str]:
    """What does not hold in a `sanity_table`, in words: what only a weak attack fails, what a robust model may too."""
    failed = sanity[~sanity.holds]
    both = failed.check.isin(_ROBUST_TOO)
    weak, either = (
        "; ".join(f"{r.check}: {r.left:.1f}, {r.right:.1f} %" for r in part.itertuples())
        for part in (failed[~both], failed[both])
    )
    return weak, either
