"""What is measured of a finetuned model beside its row: its eps set, the noise of its rounds, the attacks it bears."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from nslib.analysis.attack_curves import VERSION as STRENGTH_VERSION
from nslib.analysis.attack_curves import pgd_curve
from nslib.analysis.epsilon import VERSION as REACH_VERSION
from nslib.analysis.epsilon import eps_noises, reach_table
from nslib.evaluate.bench import Bench
from nslib.finetune.result import history_table
from nslib.finetune.rounds import Finetuned
from nslib.nullspace.membership import clean_pass
from nslib.settings import Settings
from nslib.study.experiment import open_pool
from nslib.study.jobs import kept_of
from nslib.study.kept import rounded
from nslib.study.traces import influence_key

_FRESH = 1000  # seeds from here on are of noises that no round has learned


def eps_set(
    bench: Bench, settings: Settings, objective: str, *, eps: float, seed: int = 0, blocks: int = 1, **changes
) -> pd.DataFrame:
    """How far the eps set of a model reaches along fresh directions: noises that no finetuning has seen.

    The noises are learned anew against each model from the same starts; the controls are their permutations and random
    directions. Norms are measured on the reported images; those along the learned noises also on the next ones of val.

    Args:
        objective: with which the model was finetuned, or `base`.
        seed, changes: as in `finetuned`.
        blocks: of images, each of as many, on which norms are measured.
    Returns:
        columns model (the objective), block, start, noise, norm, gap, reached.
    """
    study = replace(settings.approximate, eps=(eps,), starts=settings.finetuning.fresh, noise=settings.finetune.noise)

    def measure(done: Finetuned) -> dict[str, Any]:
        model = done.model
        pool = open_pool(settings, model, bench.source)
        noises = eps_noises(model, pool, study, seed=settings.seed + _FRESH, stops=("heldout",))
        rows = []
        for block in range(blocks):
            images, _ = bench.source.take("val", study.reach_images, start=block * study.reach_images)
            found = reach_table(
                model, clean_pass(model, images), noises, seed=settings.seed + _FRESH, controls=not block
            )
            rows += found.drop(columns="eps").assign(model=objective, block=block).to_dict("records")
        return {"rows": rounded(rows)}

    given = {name: getattr(settings, name) for name in ("seed", "pool", "heldout")}
    asked = {"reach": study, "reach_version": REACH_VERSION, **given}
    name = f"reach-{eps:g}"
    if blocks > 1:  # with one, as results were kept before there were several
        asked["reach_blocks"], name = blocks, f"{name}_blocks-{blocks}"
    rows = kept_of(bench, settings, objective, name, asked, measure, seed=seed, **changes)["rows"]
    rows = [{"block": 0} | row for row in rows]
    return pd.DataFrame(rows, columns=["model", "block", "start", "noise", "norm", "gap", "reached"])


def influence_of_rounds(bench: Bench, settings: Settings, objective: str, *, seed: int = 0) -> pd.DataFrame:
    """The gap of each round's noise on the images that stopped its search and on images of val, which had no say.

    Args:
        objective: one of `nslib.study.traces.INFLUENCED`.
    Returns:
        columns round, norm, steps, gap_batch, gap_heldout, gap (on val), low, high (normal, 95 % over its images),
        match (share of their predictions that stay), n.
    """

    def measure(done: Finetuned) -> dict[str, Any]:
        learned = history_table(done.history)[["round", "norm", "steps", "gap_batch", "gap_heldout"]]
        found = pd.DataFrame([r.influence for r in done.history])
        half = 1.96 * found.pop("gap_error")
        rows = learned.join(found.assign(low=found.gap - half, high=found.gap + half))
        return {"rows": rounded(rows.to_dict("records"))}

    asked = {"influence": influence_key(bench, settings)}
    rows = kept_of(bench, settings, objective, "influence", asked, measure, seed=seed)["rows"]
    return pd.DataFrame(rows, columns=["round", "norm", "steps", "gap_batch", "gap_heldout", "gap", "low", "high",
                                       "match", "n"])  # fmt: skip


def strength(bench: Bench, settings: Settings, objective: str) -> pd.DataFrame:
    """Top-1 under PGD against its budget, on the first images of val: of a finetuned model, or of `base`.

    Returns:
        columns model, eps (in 1/255), value, low, high (percent), n.
    """
    study, steps = settings.robustness, settings.suite.pgd_steps

    def measure(done: Finetuned) -> dict[str, Any]:
        found = pgd_curve(done.model, *bench.take("val", 0, study.images), study.eps, steps=steps)
        return {"rows": rounded(found.to_dict("records"))}

    asked = {"eps": study.eps, "images": study.images, "steps": steps, "version": STRENGTH_VERSION}
    rows = kept_of(bench, settings, objective, "strength", {"strength": asked}, measure)["rows"]
    return pd.DataFrame(rows, columns=["eps", "value", "low", "high", "n"]).assign(model=objective)
