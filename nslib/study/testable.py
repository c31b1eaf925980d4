"""Which claims about finetuning a run can be judged by: those whose settings and columns it has."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from nslib.checks import require
from nslib.config import TABLE2, FinetuneConfig
from nslib.settings import Settings

ATTACKED = ("patchfool", "cw", "fgsm", "damagenet", "pgd", "autoattack")  # columns of adversarial images
_ON_TOKENS = ("noises", "warm_start", "block", "groups")  # settings that are beyond the paper where they differ


def noise_as_paper(cfg: FinetuneConfig) -> bool:
    """Whether noise is as claims have it: A = 3, T >= 3000, eps = .03 on held-out images, one on the tokens."""
    noise, usual = cfg.noise, FinetuneConfig()
    plain = all(getattr(cfg, name) == getattr(usual, name) for name in _ON_TOKENS)
    return plain and (noise.limit, noise.eps, noise.stop_on) == (3, 0.03, "heldout") and noise.steps >= 3000


def cost_as_paper(cfg: FinetuneConfig) -> bool:
    """Whether the noise's share of the cost can be judged: it is learned from as many images as an update has."""
    return noise_as_paper(cfg) and cfg.noise.batch == cfg.batch


def as_paper(cfg: FinetuneConfig) -> bool:
    """Whether all parameters are trained, in the paper's rounds and steps (K = 20, S = 40), with such noise."""
    return noise_as_paper(cfg) and (cfg.rounds, cfg.steps, cfg.trainable) == (20, 40, "")


def rivalled(settings: Settings) -> bool:
    """Whether claim C12 can be judged: the paper's rounds and steps, and both of its rivals."""
    return as_paper(settings.finetune) and {"madry", "trades"} <= set(settings.finetuning.objectives)


def whole(settings: Settings) -> bool:
    """Whether claim C11 can be judged: the paper's rounds and steps, and every column of Table 2."""
    return as_paper(settings.finetune) and set(TABLE2) <= set(settings.finetuning.columns)


def both_kinds(columns: Sequence[str]) -> bool:
    """Whether claim C10 can be judged by these columns: adversarial and shifted ones are among them."""
    return {c in ATTACKED for c in columns if c != "clean"} == {True, False}


def sides(columns: Sequence[str]) -> dict[str, list[str]]:
    """Of these columns those of claim C12: natural ones, clean and shifted, against FGSM and DamageNet."""
    return {
        "natural": [c for c in columns if c not in ATTACKED],
        "adversarial": [c for c in columns if c in ("fgsm", "damagenet")],
    }


def whole_side(columns: Sequence[str]) -> bool:
    """Whether claim C12 can be judged by a side of `sides`: all that it names is there, clean beside shifted ones."""
    return {"fgsm", "damagenet"} == {*columns} or ("clean" in columns and len(columns) > 1)


def columns_of(settings: Settings, table: Collection[str]) -> list[str]:
    """Columns of the study that a table of the paper has too, whose names are among these.

    Raises:
        ValueError: there is none, or c alone, which is an error and no accuracy.
    """
    asked = settings.finetuning.columns
    found = [c for c in asked if c in table]
    wanted = f"one or more of {', '.join(c for c in TABLE2 if c in table and c != 'c')}"
    require(bool(set(found) - {"c"}), "finetuning.columns", wanted, asked)
    return found
