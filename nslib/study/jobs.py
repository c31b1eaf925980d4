"""The finetuned models of the notebooks: each trained once, measured on the same images, and kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from nslib.config import FinetuneConfig, NoiseConfig, SuiteConfig
from nslib.data.corruptions import VERSION as CORRUPTIONS_VERSION
from nslib.evaluate.bench import TRANSFER_VERSION, Bench
from nslib.evaluate.columns import COLUMNS, COSTLY, check_columns, missing_of
from nslib.evaluate.suite import VERSION as EVALUATION_VERSION
from nslib.evaluate.suite import Evaluation, evaluate_model
from nslib.finetune.objectives import own_code, with_recipe
from nslib.finetune.precision import resolved
from nslib.finetune.rounds import Finetuned, finetune_model
from nslib.finetune.state import Round, identity_of, rounds_of
from nslib.machine.makers import being_made
from nslib.machine.progress import finetune_bar
from nslib.nullspace.encoder import VERSION as NOISE_VERSION
from nslib.runtime import store_path
from nslib.settings import Settings
from nslib.store import digest, model_digest, timeless
from nslib.study.kept import jobs_path, kept, packed, read_kept, rounded, taken, unpacked
from nslib.study.traces import (
    INFLUENCED,
    TRACED,
    influence,
    influence_key,
    influenced,
    trace_key,
    traced,
    traced_inputs,
)
from nslib.vit.staged import StagedViT

VERSION = 1  # part of every stored model: raise it when the same settings give another one
BASE = "base"
_COST = ("minutes", "units", "images_of_standard_training", "missed_eps")


@dataclass(frozen=True)
class Job:
    """One finetuned model: what happened in each round, what the run cost, and what the model gets right.

    `cost` has minutes of training, units (see `nslib.finetune.cost.Meter`), images_of_standard_training and missed_eps,
    and of rows made since they are counted evaluation_minutes.
    """

    history: list[Round]
    cost: dict[str, Any]
    evaluation: Evaluation


def finetuned(bench: Bench, settings: Settings, objective: str, *, seed: int = 0, **changes) -> Finetuned:
    """The bench's model finetuned with an objective; trained now unless the store has it, resumed where it was stopped.

    Args:
        seed: added to the settings' own.
        changes: of settings.finetune, such as noise or trainable.
    Raises:
        As `finetune_model`.
    """
    cfg = config_of(settings, objective, seed, **changes)

    images = cache(lambda: influenced(bench, settings))  # read once, and not at all where the model is there

    def weigh(number: int, model: StagedViT, noises: Tensor) -> dict[str, float]:
        return influence(model, images(), noises, groups=cfg.groups)

    def measure(number: int, model: StagedViT) -> dict[str, float]:
        return traced(bench, settings, model)

    with finetune_bar(cfg, f"{objective}, seed {cfg.seed}") as on_step:
        return finetune_model(
            bench.model, bench.source, cfg, target=_target(bench, settings, cfg), on_step=on_step,
            on_noise=weigh if _influences(settings, cfg) else None, on_round=measure if objective in TRACED else None,
        )  # fmt: skip


def in_turn(bench: Bench, settings: Settings, wanted: Sequence[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """Each (objective, seed) once, those last that another process is at: two that want the same ones share them."""

    def under_way(objective: str, seed: int) -> bool:
        cfg = config_of(settings, objective, seed)
        return any(map(being_made, (_target(bench, settings, cfg), _file(bench, settings, cfg))))

    left = list(wanted)
    while left:
        one = next((w for w in left if not under_way(*w)), left[0])
        left.remove(one)
        yield one


def _influences(settings: Settings, cfg: FinetuneConfig) -> bool:
    """Whether the influence of its rounds' noise is measured: of the objectives of which it is asked, unchanged."""
    return cfg.objective in INFLUENCED and cfg == config_of(settings, cfg.objective, cfg.seed - settings.finetune.seed)


def _target(bench: Bench, settings: Settings, cfg: FinetuneConfig) -> Path:
    """Where in the store a finetuned model lies."""
    asked = [trace_key(settings), *timeless(traced_inputs(bench, settings))] if cfg.objective in TRACED else None
    train = timeless(bench.identity("train"))
    inputs = [VERSION, NOISE_VERSION, identity_of(cfg), model_digest(bench.model), train, asked]
    if (kind := precision_of(bench, cfg)) != "float32":
        inputs.append(kind)
    if own := own_code(cfg.objective):
        inputs.append(own)
    if _influences(settings, cfg):
        inputs.append(influence_key(bench, settings))
    return store_path() / "finetune" / digest(inputs) / f"{cfg.objective}.safetensors"


def run(bench: Bench, settings: Settings, objective: str, *, seed: int = 0, **changes) -> Job:
    """A finetuned model's rounds, cost and columns; with settings.finetuning.keep from the file that has them.

    Args:
        seed, changes: as in `finetuned`; a change to what the settings say anyway is none.
    Raises:
        ValueError: a kept file is damaged, or was made from other inputs.
    """

    def compute() -> dict[str, Any]:
        done = finetuned(bench, settings, objective, seed=seed, **changes)
        started = time.monotonic()
        found = evaluate_model(done.model, bench.source, row_suite(settings), surrogate=bench.surrogate)
        measuring = {"evaluation_minutes": (time.monotonic() - started) / 60}
        cost = rounded({name: done.record[name] for name in _COST} | measuring)
        return {"history": rounded([asdict(r) for r in done.history]), "cost": cost, "evaluation": packed(found)}

    cfg = config_of(settings, objective, seed, **changes)
    trace = trace_key(settings) if cfg.objective in TRACED else None
    inputs = {**_inputs(bench), **_training(bench, cfg), "trace": trace, **_measurement(bench, row_suite(settings))}
    found = kept(_file(bench, settings, cfg), inputs, compute)
    return Job(rounds_of(found["history"]), found["cost"], unpacked(found["evaluation"], settings.finetuning.columns))


def config_of(settings: Settings, objective: str, seed: int = 0, **changes) -> FinetuneConfig:
    """The configuration of one of the runs, with its objective's recipe; its seed is added to the settings' own."""
    seed += settings.finetune.seed
    return with_recipe(replace(settings.finetune, objective=objective, seed=seed, **changes))


def precision_of(bench: Bench, cfg: FinetuneConfig) -> str:
    """float32 or bfloat16: in which a run's updates and noises are computed here."""
    return resolved(cfg, bench.model.device).precision


def fixed_noise(settings: Settings) -> NoiseConfig:
    """The noise of the run without early stopping (claim C19): a fixed number of steps."""
    return replace(settings.finetune.noise, eps=None, steps=settings.finetuning.fixed_steps)


def wide_row(bench: Bench, settings: Settings, objective: str) -> Evaluation:
    """A finetuned model's columns without costly attacks, on as many images as `settings.finetuning.wide_images` says.

    Of the first seed: what its difference to another model lacks in seeds it has in images.
    """
    return _measured(bench, settings, objective, "wide", wide_suite(settings))


def base_row(bench: Bench, settings: Settings) -> Evaluation:
    """The columns of the model before finetuning, on the same images as those of every run."""
    return replace(_measured(bench, settings, BASE, "row", row_suite(settings)), model=BASE, fixed=True)


def _measured(bench: Bench, settings: Settings, objective: str, kind: str, suite: SuiteConfig) -> Evaluation:
    def measure(done: Finetuned) -> dict[str, Any]:
        return {"evaluation": packed(evaluate_model(done.model, bench.source, suite, surrogate=bench.surrogate))}

    found = kept_of(bench, settings, objective, kind, _measurement(bench, suite), measure)
    return unpacked(found["evaluation"], suite.columns)


def kept_of(
    bench: Bench, settings: Settings, objective: str, kind: str, asked: dict[str, Any],
    measure: Callable[[Finetuned], dict[str, Any]], seed: int = 0, **changes,
) -> dict[str, Any]:  # fmt: skip
    """What is measured of a finetuned model, or of `base`, beside its row; from its file if there."""

    def compute() -> dict[str, Any]:
        base = Finetuned(bench.model)
        return measure(base if objective == BASE else finetuned(bench, settings, objective, seed=seed, **changes))

    cfg = config_of(settings, objective, seed, **changes)
    how = {} if objective == BASE else _training(bench, cfg)
    return kept(_file(bench, settings, cfg, kind), {**_inputs(bench), **how, **asked}, compute)


def _inputs(bench: Bench) -> dict[str, Any]:
    """All on which what is measured depends besides how a model was finetuned and what is asked."""
    return {
        "version": {"job": VERSION, "noise": NOISE_VERSION},
        "weights": model_digest(bench.model),
        "data": {split: bench.identity(split) for split in ("train", "val")},
    }


def _training(bench: Bench, cfg: FinetuneConfig) -> dict[str, Any]:
    return {"finetune": identity_of(cfg), "precision": precision_of(bench, cfg), **own_code(cfg.objective)}


def _measurement(bench: Bench, suite: SuiteConfig) -> dict[str, Any]:
    """All on which its row depends besides: of the suite numbers of images and what columns that can be shown take."""
    check_columns(suite.columns)
    shown = {name: COLUMNS[name] for name in suite.columns if not missing_of(name, bench)}
    counts = {"costly_images" if column.costly else "images" for column in shown.values()}
    if "c" in shown:
        counts.add("c_images")
    asked = {"batch", "first"}.union(counts, *(column.settings for column in shown.values()))
    versions = {"evaluation": EVALUATION_VERSION, "corruptions": CORRUPTIONS_VERSION, "transfer": TRANSFER_VERSION}
    return {
        "columns": {name: column.version for name, column in shown.items()},
        "measured": versions,
        "suite": {name: getattr(suite, name) for name in sorted(asked)},
        "shown": {s: bench.identity(s) for column in shown.values() for s in bench.reads(column.split)},
        "surrogate": bench.surrogate and model_digest(bench.surrogate),
    }


def _file(bench: Bench, settings: Settings, cfg: FinetuneConfig, *kind: str) -> Path | None:
    """Where a result is kept; None where the study does not ask for it."""
    if not settings.finetuning.keep:
        return None
    changes = changed(config_of(settings, cfg.objective), cfg)
    others = [f"images-{images}"] if (images := settings.data.images) else []  # on which it was trained
    others += [f"first-{first}"] if (first := settings.suite.first) else []  # of those that are measured
    name = "_".join([bench.model.name, cfg.objective, f"seed{cfg.seed}", *changes, *others, *kind])
    return jobs_path(settings.run_name) / f"{name}.json"


def changed(before: FinetuneConfig, after: FinetuneConfig) -> list[str]:
    """Settings that differ, besides objective and seed, each as `noise.eps-0.1`."""
    old, new = (pd.json_normalize(asdict(replace(cfg, objective="", seed=0))).iloc[0] for cfg in (before, after))
    return [f"{name}-{value}" for name, value in new.items() if value != old[name]]


def row_suite(settings: Settings) -> SuiteConfig:
    """What is measured of every finetuned model."""
    study, suite = settings.finetuning, settings.suite
    costly = study.costly_images or suite.costly_images
    return replace(suite, columns=study.columns, images=study.images, costly_images=costly)


def wide_suite(settings: Settings) -> SuiteConfig:
    """What is measured for `wide_row`."""
    study, suite = settings.finetuning, row_suite(settings)
    cheap = tuple(c for c in study.columns if c not in COSTLY)
    return replace(suite, columns=cheap, images=study.wide_images, c_images=2 * (suite.c_images or study.images))


def provenance(settings: Settings) -> list[dict[str, Any]]:
    """Of each kept result that this process has used: its name, and commit, versions, threads and day that made it.

    Raises:
        ValueError: a kept file is damaged.
    """
    made = []
    for path in taken(jobs_path(settings.run_name)):
        record = read_kept(path)
        facts = {name: record[name] for name in ("commit", "versions", "made")}
        made.append({"job": path.stem, **facts, "threads": record["hardware"]["threads"]})
    return made
