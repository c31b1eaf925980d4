"""A check of the recipe of the embedded experiment: which learning rate and eps leave most to learned noise, by val."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from nslib.evaluate.bench import Bench
from nslib.evaluate.comparison import mean_difference
from nslib.jobs import run
from nslib.profiles import Settings

VAL = ("clean", "fgsm", "damagenet", "c")  # columns that are made of the images of val; those that can be shown count
_TRACED = 16  # images of each round's measurement, which decides nothing here


def settings_table(bench: Bench, settings: Settings) -> pd.DataFrame:
    """Short runs over settings.finetuning.search_lr and search_eps: learned noise minus `plain` at the same rate.

    Each is 1/10 of its learning rate at the end, as in the paper. Differences are means over the columns of val, in
    percentage points, paired by image. The images are those of val after the ones that are reported.

    Returns:
        the largest difference first: columns lr, eps, plain (its mean top-1 over the columns, percent), difference,
        low, high, n, norm (of the last round's noise).
    """
    study = settings.finetuning
    short = replace(study, columns=VAL, images=study.search_images, trace_images=_TRACED)
    settings = replace(settings, finetuning=short, suite=replace(settings.suite, first=study.images, c_images=0))
    rows = []
    for lr in study.search_lr:
        recipe = {"rounds": study.search_rounds, "lr": lr, "lr_min": float(f"{lr / 10:.6g}")}
        plain = run(bench, settings, "plain", **recipe).evaluation
        columns = [c for c in VAL if c in plain.hits]
        height = sum(plain.estimate(c).value for c in columns) / len(columns)
        for eps in study.search_eps:
            noise = replace(settings.finetune.noise, eps=eps)
            job = run(bench, settings, "nullspace", noise=noise, **recipe)
            gain = mean_difference(job.evaluation, plain, columns)
            rows.append({"lr": lr, "eps": eps, "plain": height, "difference": gain.value, "low": gain.low,
                         "high": gain.high, "n": gain.n, "norm": job.history[-1].noises[0].norm})  # fmt: skip
    table = pd.DataFrame(rows, columns=["lr", "eps", "plain", "difference", "low", "high", "n", "norm"])
    return table.sort_values("difference", ascending=False, ignore_index=True)


def place_of_settings(table: pd.DataFrame, settings: Settings) -> str:
    """Where the settings' own learning rate and eps stand in `settings_table`, in words."""
    own = f"this profile's lr {settings.finetune.lr:g} and eps {settings.finetune.noise.eps:g}"
    if table.empty:
        return f"no search at this profile for {own}"
    of_lr = table.lr == settings.finetune.lr
    place = table.index[of_lr & (table.eps == settings.finetune.noise.eps)]
    if place.empty:
        return f"{own} are not among the {len(table)} that were searched"
    best, lrs = table.iloc[0], list(dict.fromkeys(table.lr))
    return (
        f"{own}: place {place[0] + 1} of {len(table)}, {table.difference[place[0]]:.2f} points over plain; "
        f"the first is lr {best.lr:g} and eps {best.eps:g}, {best.difference:.2f} [{best.low:.2f}, {best.high:.2f}]; "
        f"by its best eps the learning rate is place {lrs.index(settings.finetune.lr) + 1} of {len(lrs)}"
    )
