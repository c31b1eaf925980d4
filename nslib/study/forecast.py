"""What the notebooks of a profile will take, told before they start."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from nslib.analysis.epsilon import STOPPING
from nslib.evaluate.bench import Bench
from nslib.evaluate.suite import dry_run
from nslib.finetune.estimate import Needs, estimate
from nslib.settings import Settings
from nslib.study.experiment import barely_trained, open_bench
from nslib.study.jobs import config_of, row_suite, wide_suite
from nslib.study.plan import beyond, planned
from nslib.study.ready import check_images, check_study
from nslib.study.traces import TRACED, trace_suite
from nslib.study.trials import OF_OTHERS, of_eps_sets, of_wide, seeds_of

_COLUMNS = ["model", "work", "runs", "images", "noise_steps", "noise_hours", "hours", "memory"]


def finetunings(settings: Settings) -> Counter[str]:
    """How many models notebooks 05 to 08 and 11 finetune from the first one, by objective, the search of 11 apart."""
    alone = replace(settings, models=settings.models[:1])
    return Counter(p.objective for p in planned(alone, depth=1))


def forecast(settings: Settings) -> pd.DataFrame:
    """Images, noise steps, hours and memory of each kind of work that takes long, for each model of the settings.

    Speeds are measured now, in a few steps and batches. No noise is taken to be inside eps before its last step, and
    nothing to be in the store already; runs with settings of their own count as one with the profile's, and training
    from scratch as plain finetuning on as many images. What takes less, such as curves of attacks, ways to a boundary
    and the training of a surrogate, is left out, and so is the search of notebook 11.

    Returns:
        columns model, work, runs, images (of all runs), noise_steps and noise_hours (at most), hours (without those),
        memory (GB of one process; not known of evaluation).
    Raises:
        as `check_study`, `check_images`, `open_bench` and `finetune_model`.
    """
    check_study(settings)
    check_images(settings)
    (first, *others), barely = settings.models, barely_trained(settings)
    tables = [_of_model(open_bench(barely, first), settings, finetunings(settings), whole=True)]
    for name in others:
        tables.append(_of_model(open_bench(barely, name), settings, Counter(OF_OTHERS), whole=False))
    return pd.concat(tables, ignore_index=True)


def _from_scratch(settings: Settings, plain: Needs, *, whole: bool) -> list[dict[str, Any]]:
    """The model itself, and beside the first the strangers of notebook 13, which `open_stranger` trains."""
    own, study = settings.pretrain, settings.fingerprint
    trainings = [("training from scratch", 1, own.steps * own.batch)]
    if whole and study.trained:
        trainings.append(("strangers of 13, from scratch", study.trained, study.trained * study.steps * study.batch))
    return [{"work": work, "runs": runs, "images": images, "hours": images * plain.hours / plain.images,
             "memory": plain.peak / 1e9} for work, runs, images in trainings]  # fmt: skip


def _of_model(bench: Bench, settings: Settings, models: Counter[str], *, whole: bool) -> pd.DataFrame:
    """Of the first model all (`whole`), of a further one what notebooks 02 and 06 do with it."""
    tried = tqdm(models, desc=f"measuring {bench.model.name}", leave=False)  # minutes each, of a large model on a CPU
    found = {o: estimate(bench.model, bench.source, config_of(settings, o)) for o in tried}
    learning = found["nullspace"]
    rows = _from_scratch(settings, found["plain"], whole=whole) if settings.weights == "train" else []
    for name, study, searches in _searches(settings)[: None if whole else 1]:
        seconds = learning.noise_step_seconds * study.noise.batch / settings.finetune.noise.batch
        steps = searches * study.noise.steps
        rows.append({"work": name, "runs": searches, "images": steps * study.noise.batch, "noise_steps": steps,
                     "noise_hours": steps * seconds / 3600, "memory": learning.peak / 1e9})  # fmt: skip
    for objective, runs in models.items():
        one = found[objective]
        searching = one.noise_steps * one.noise_step_seconds / 3600
        rows.append({"work": f"finetune: {objective}", "runs": runs, "images": runs * one.images,
                     "noise_steps": runs * one.noise_steps, "noise_hours": runs * searching,
                     "hours": runs * (one.hours - searching), "memory": one.peak / 1e9})  # fmt: skip
    rounds = settings.finetune.rounds * sum(models[o] for o in TRACED)
    suites = [("evaluate: rows of 06 to 08, 11", row_suite(settings), models.total() + 1)]
    suites += [("evaluate: after every round, for 05", trace_suite(settings), rounds)]
    suites += [("evaluate: base model of 06", settings.suite, 1)] if whole else []
    if whole and (wide := of_wide(settings)):
        suites += [("evaluate: rows of one seed, on more images", wide_suite(settings), len(wide))]
    for name, suite, runs in suites:
        asked = dry_run(Bench(bench.model, bench.source, suite, bench.surrogate))
        rows.append({"work": name, "runs": runs, "images": runs * int(asked.images.sum()),
                     "hours": runs * asked.minutes.sum() / 60})  # fmt: skip
    table = pd.DataFrame(rows, columns=_COLUMNS).assign(model=bench.model.name)
    nothing = {"noise_steps": 0, "noise_hours": 0.0, "hours": 0.0}
    return table.fillna(nothing).astype({"noise_steps": int})


def _searches(settings: Settings) -> list[tuple[str, Any, int]]:
    """Of notebooks 02 to 05 and 11: name, what has the settings of the noise, and how many noises are learned."""
    sweep, sets, closure = settings.synthesis, settings.approximate, settings.closure
    fresh = settings.finetuning.fresh
    of_05 = 1 + sum(seeds_of(settings, o) for o in of_eps_sets(settings))  # the base model has one
    options = beyond(settings.finetune, depth=1) if settings.finetuning.variants else {}
    of_11 = sum(name.startswith("nullspace") for name in options)
    return [
        ("noises of 02", sweep, len(sweep.lambdas) * sweep.starts),
        ("noises of 03", sets, len(sets.eps) * sets.starts * len(STOPPING)),
        ("noises of 04", closure, closure.noises),
        ("eps sets of 05", settings.finetune, of_05 * fresh),
        *([("eps sets of 11", settings.finetune, of_11 * fresh)] if of_11 else []),
    ]
