"""In which setting of the embedded experiment has learned noise room to act? Searched on val, reported on the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pandas as pd

from nslib.data.source import open_source
from nslib.evaluate.bench import Bench
from nslib.evaluate.comparison import mean_difference, pool_seeds
from nslib.evaluate.suite import Evaluation
from nslib.settings import Settings
from nslib.study.experiment import open_stranger
from nslib.study.jobs import BASE, Job, base_row, run

VAL = ("clean", "fgsm", "damagenet", "c")  # columns that are made of the images of val; those that can be shown count
_TRACED = 16  # images of each round's measurement, which decides nothing here
_COLUMNS = ("base", "images", "rounds", "lr", "eps", "limit", "plain", "difference", "low", "high", "n", "norm",
            "missed_eps")  # fmt: skip


class Recipe(NamedTuple):
    """What is searched."""

    base: int  # seed of the base model, 0: the settings' own
    images: int  # that the updates see again and again, 0: fresh ones
    rounds: int
    lr: float  # a tenth of it at the end, as in the paper
    eps: float | None
    limit: float  # of a noise's start


def settings_table(bench: Bench, settings: Settings) -> pd.DataFrame:
    """Runs of each of `recipes`: learned noise minus `plain` from the same base model, as long and at the same rate.

    Differences are means over the columns of val, in percentage points, paired by image. The images of val are others
    than those that are reported.

    Returns:
        the largest difference first: the fields of `Recipe`, plain (its mean top-1 over the columns, percent),
        difference, low, high, n, norm (of the last round's noise), missed_eps (rounds with noise outside eps).
    """
    study = settings.finetuning
    judging = replace(study, columns=VAL, images=study.search_images, wide_images=0, trace_images=_TRACED)
    suite = replace(settings.suite, first=settings.suite.first + study.search_first, c_images=0)
    settings = replace(settings, finetuning=judging, suite=suite)
    rows = []
    for recipe in recipes(settings):
        plain, job = (_run(bench, settings, recipe, objective) for objective in ("plain", "nullspace"))
        plain = plain.evaluation
        columns = [c for c in VAL if c in plain.hits]
        gain = mean_difference(job.evaluation, plain, columns)
        height = sum(plain.estimate(c).value for c in columns) / len(columns)
        rows.append({**recipe._asdict(), "plain": height, "difference": gain.value, "low": gain.low,
                     "high": gain.high, "n": gain.n, "norm": job.history[-1].noises[0].norm,
                     "missed_eps": len(job.cost["missed_eps"])})  # fmt: skip
    return pd.DataFrame(rows, columns=_COLUMNS).sort_values("difference", ascending=False, ignore_index=True)


def on_test(bench: Bench, settings: Settings, table: pd.DataFrame) -> dict[str, Evaluation]:
    """Base, `plain` and NS rows of the first recipe of `settings_table` on all columns, with the study's seeds.

    Empty where nothing was searched.
    """
    if table.empty:
        return {}
    recipe = _recipes_in(table)[0]
    seeds = range(settings.finetuning.seeds)
    found = {BASE: base_row(*_place(bench, settings, recipe))}
    for objective in ("plain", "nullspace"):
        each = [_run(bench, settings, recipe, objective, seed=seed).evaluation for seed in seeds]
        found[objective] = pool_seeds(each, objective)
    return found


def _run(bench: Bench, settings: Settings, recipe: Recipe, objective: str, *, seed: int = 0) -> Job:
    """A recipe's model. `plain` has no noise, and is the same for all recipes that differ in theirs alone."""
    bench, settings = _place(bench, settings, recipe)
    changes = {"rounds": recipe.rounds, "lr": recipe.lr, "lr_min": float(f"{recipe.lr / 10:.6g}")}
    if objective != "plain":
        changes["noise"] = replace(settings.finetune.noise, eps=recipe.eps, limit=recipe.limit)
    return run(bench, settings, objective, seed=seed, **changes)


def _place(bench: Bench, settings: Settings, recipe: Recipe) -> tuple[Bench, Settings]:
    """A recipe's base model and images."""
    bench = bench.of(open_stranger(settings, recipe.base)) if recipe.base else bench
    if not recipe.images:
        return bench, settings
    cfg = settings.finetune  # its images for the noise come first, and no update sees them
    settings = replace(settings, data=replace(settings.data, images=cfg.pool + cfg.heldout + recipe.images))
    return Bench(bench.model, open_source(settings.data, bench.model), bench.suite, bench.surrogate), settings


def recipes(settings: Settings) -> list[Recipe]:
    """Every learning rate with every eps, and the settings' own recipe with other limits, from other base models and on
    few images, all of them short; and the own recipe with other numbers of rounds."""
    study = settings.finetuning
    own = _own(settings)._replace(rounds=study.search_rounds)
    eps_tried = study.search_eps or (own.eps,)
    grid = [own._replace(lr=lr, eps=eps) for lr in study.search_lr for eps in eps_tried]
    limits = [own._replace(limit=limit) for limit in study.search_limits]
    bases = [own._replace(base=seed) for seed in study.search_bases]
    few = [own._replace(images=images) for images in study.search_few]
    return grid + limits + bases + few + [own._replace(rounds=rounds) for rounds in study.search_longer]


def place_of_settings(table: pd.DataFrame, settings: Settings) -> str:
    """Where the settings' own recipe stands in `settings_table`, in words."""
    own = _own(settings)
    told = f"this profile's {_words(own)}"
    if table.empty:
        return f"no search at this profile for {told}"
    searched, first = _recipes_in(table), table.iloc[0]
    if own not in searched:
        return f"{told} are not among the {len(table)} that were searched"
    place = searched.index(own)
    return (
        f"{told}: place {place + 1} of {len(table)}, {table.difference[place]:.2f} points over plain; the first is "
        f"{_words(searched[0])}, {first.difference:.2f} [{first.low:.2f}, {first.high:.2f}]"
    )


def _recipes_in(table: pd.DataFrame) -> list[Recipe]:
    rows = table[list(Recipe._fields)].astype(object).where(table.notna(), None)  # pandas has NaN for no eps
    return [Recipe(*row) for row in rows.itertuples(index=False)]


def _words(recipe: Recipe) -> str:
    base = f" from base model {recipe.base:g}" if recipe.base else ""
    few = f" on {recipe.images:g} images" if recipe.images else ""
    return f"{recipe.rounds:g} rounds, lr {recipe.lr:g}, eps {recipe.eps} and limit {recipe.limit:g}{base}{few}"


def _own(settings: Settings) -> Recipe:
    cfg = settings.finetune
    return Recipe(0, 0, cfg.rounds, cfg.lr, cfg.noise.eps, cfg.noise.limit)
