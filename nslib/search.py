"""A check of the recipe of the embedded experiment: which of its settings leave most to learned noise, by val alone."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pandas as pd

from nslib.evaluate.bench import Bench
from nslib.evaluate.comparison import mean_difference
from nslib.experiment import open_stranger
from nslib.jobs import run
from nslib.settings import Settings

VAL = ("clean", "fgsm", "damagenet", "c")  # columns that are made of the images of val; those that can be shown count
_TRACED = 16  # images of each round's measurement, which decides nothing here
_COLUMNS = ("base", "rounds", "lr", "eps", "limit", "plain", "difference", "low", "high", "n", "norm", "missed_eps")


class Recipe(NamedTuple):
    """What is searched: seed of the base model (0: the settings' own), rounds, learning rate, eps, limit of a start."""

    base: int
    rounds: int
    lr: float
    eps: float | None
    limit: float


def settings_table(bench: Bench, settings: Settings) -> pd.DataFrame:
    """Runs of each of `recipes`: learned noise minus `plain` from the same base model, as long and at the same rate.

    Each is 1/10 of its learning rate at the end, as in the paper. Differences are means over the columns of val, in
    percentage points, paired by image. The images are those of val after the ones that are reported.

    Returns:
        the largest difference first: columns base (its seed), rounds, lr, eps, limit, plain (its mean top-1 over the
        columns, percent), difference, low, high, n, norm (of the last round's noise), missed_eps (rounds with noise
        outside eps).
    """
    study = settings.finetuning
    short = replace(study, columns=VAL, images=study.search_images, trace_images=_TRACED)
    reported = max(study.images, settings.images, settings.suite.images)
    settings = replace(settings, finetuning=short, suite=replace(settings.suite, first=reported, c_images=0))
    rows = []
    for recipe in recipes(settings):
        of_base = bench.of(open_stranger(settings, recipe.base)) if recipe.base else bench
        common = {"rounds": recipe.rounds, "lr": recipe.lr, "lr_min": float(f"{recipe.lr / 10:.6g}")}
        noise = replace(settings.finetune.noise, eps=recipe.eps, limit=recipe.limit)
        plain = run(of_base, settings, "plain", **common).evaluation
        job = run(of_base, settings, "nullspace", noise=noise, **common)
        columns = [c for c in VAL if c in plain.hits]
        gain = mean_difference(job.evaluation, plain, columns)
        height = sum(plain.estimate(c).value for c in columns) / len(columns)
        rows.append({**recipe._asdict(), "plain": height, "difference": gain.value, "low": gain.low,
                     "high": gain.high, "n": gain.n, "norm": job.history[-1].noises[0].norm,
                     "missed_eps": len(job.cost["missed_eps"])})  # fmt: skip
    return pd.DataFrame(rows, columns=_COLUMNS).sort_values("difference", ascending=False, ignore_index=True)


def recipes(settings: Settings) -> list[Recipe]:
    """Every learning rate with every eps, the settings' own recipe with other limits and from other base models, all of
    them short, and the own recipe with other numbers of rounds."""
    study = settings.finetuning
    own = _own(settings)._replace(rounds=study.search_rounds)
    grid = [own._replace(lr=lr, eps=eps) for lr in study.search_lr for eps in study.search_eps]
    limits = [own._replace(limit=limit) for limit in study.search_limits]
    bases = [own._replace(base=seed) for seed in study.search_bases]
    return grid + limits + bases + [own._replace(rounds=rounds) for rounds in study.search_longer]


def place_of_settings(table: pd.DataFrame, settings: Settings) -> str:
    """Where the settings' own recipe stands in `settings_table`, in words."""
    own = _own(settings)
    told = f"this profile's {_words(own)}"
    if table.empty:
        return f"no search at this profile for {told}"
    place = [i for i, row in enumerate(table[list(Recipe._fields)].itertuples(index=False)) if tuple(row) == own]
    if not place:
        return f"{told} are not among the {len(table)} that were searched"
    first = table.iloc[0]
    return (
        f"{told}: place {place[0] + 1} of {len(table)}, {table.difference[place[0]]:.2f} points over plain; the first "
        f"is {_words(first)} from {_base_name(first.base)}, "
        f"{first.difference:.2f} [{first.low:.2f}, {first.high:.2f}]"
    )


def _words(recipe: Recipe) -> str:
    return f"{recipe.rounds:g} rounds, lr {recipe.lr:g}, eps {recipe.eps} and limit {recipe.limit:g}"


def _base_name(seed: int) -> str:
    return f"base model {seed:g}" if seed else "the base model"


def _own(settings: Settings) -> Recipe:
    cfg = settings.finetune
    return Recipe(0, cfg.rounds, cfg.lr, cfg.noise.eps, cfg.noise.limit)
