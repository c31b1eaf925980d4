"""Measure a model on the columns of Table 2: resumable part by part, the same figures from one process or many."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from nslib.config import SuiteConfig
from nslib.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from nslib.data.corruptions import VERSION as CORRUPTIONS_VERSION
from nslib.data.source import Source
from nslib.evaluate.bench import TRANSFER_VERSION, Bench
from nslib.evaluate.columns import BESIDE, COLUMNS, Part, check_columns, hits_of, missing_of, parts_of
from nslib.evaluate.metrics import BY_CUE, Hits, corruption_error, mce, per_image
from nslib.intervals import Estimate, mean_estimate, share_estimate
from nslib.machine.processes import ALONE, Share
from nslib.runtime import generator
from nslib.store import cached, model_digest
from nslib.vit.staged import StagedViT

VERSION = 1  # part of every stored result: raise it when the same settings give another one


@dataclass(frozen=True)
class Evaluation:
    """What one model got right, image by image.

    Attributes:
        hits: for each column and variant (of c: corruption/severity; of cue_conflict: shape and texture, the cue that
            the answer follows; else one, without a name) (n,) bool, or (S, n) of S seeds.
        missing: columns that could not be shown, and why.
        published_c: column c is ImageNet-C as published, so that mCE is defined.
        sources: of columns whose images may have been made from those of val, by whom: published, or made here.
        fixed: the model is given and has no luck of a seed, as the one before finetuning.
    """

    model: str
    hits: dict[str, dict[str, np.ndarray]]
    missing: dict[str, str] = field(default_factory=dict)
    published_c: bool = False
    sources: dict[str, str] = field(default_factory=dict)
    fixed: bool = False

    @property
    def seeds(self) -> int:
        """How many seeds were pooled."""
        first = next((h for variants in self.hits.values() for h in variants.values()), np.empty(0))
        return len(first) if first.ndim == 2 else 1

    def first_seed(self) -> Evaluation:
        """The first of the seeds that were pooled."""
        if self.seeds == 1:
            return self
        return replace(self, hits={c: {v: h[0] for v, h in variants.items()} for c, variants in self.hits.items()})

    def absent(self, column: str) -> str:
        """Why a column has no figure; empty if it has one."""
        return "" if column in self.hits else self.missing.get(column, f"{column} is not among suite.columns")

    def _measured(self, column: str) -> Hits:
        if why := self.absent(column):
            raise ValueError(f"no figure for {column}: {why}")
        return self.hits[column]

    def estimate(self, column: str) -> Estimate:
        """Top-1 of a column in percent with its interval over images and seeds; of c the mean over all corruptions.

        Raises:
            ValueError: the column has decisions by cue, or has not been measured.
        """
        if column in BY_CUE:
            raise ValueError(f"{column} has no top-1, but shares of decisions by cue: ask for `decisions`")
        values = per_image(self._measured(column))
        return (mean_estimate(values) if len(self.hits[column]) > 1 else share_estimate(values)).percent()

    def decisions(self, column: str = BY_CUE[0]) -> dict[str, Estimate]:
        """Percent of the images whose answer is their shape, their texture or neither."""
        shape, texture = (self._measured(column)[cue] for cue in ("shape", "texture"))
        followed = {"shape": shape, "texture": texture, "other": ~(shape | texture)}
        return {cue: share_estimate(hits).percent() for cue, hits in followed.items()}

    def reported(self, column: str) -> tuple[str, Estimate]:
        """What Table 2 prints for a column, and its name: top-1, but an error for c."""
        if column != "c":
            return "top-1", self.estimate(column)
        name, measure = ("mCE", mce) if self.published_c else ("corruption error", corruption_error)
        return name, measure(self._measured(column))

    def figures(self) -> list[tuple[str, str, Estimate]]:
        """Column, name of the measure and estimate of all that is reported: one a column, of cue_conflict three."""
        found = []
        for column in self.hits:
            several = self.decisions(column).items() if column in BY_CUE else [self.reported(column)]
            found += [(column, measure, estimate) for measure, estimate in several]
        return found

    def table(self) -> pd.DataFrame:
        """One row a figure, in percent; a column without data says what is missing."""
        rows = [
            {"model": self.model, "column": column, "measure": measure, "value": found.value, "low": found.low,
             "high": found.high, "n": found.n, "source": self.sources.get(column, ""), "missing": ""}
            for column, measure, found in self.figures()
        ]  # fmt: skip
        rows += [{"model": self.model, "column": c, "source": "", "missing": why} for c, why in self.missing.items()]
        names = ["model", "column", "measure", "value", "low", "high", "n", "source", "missing"]
        return pd.DataFrame(rows, columns=names)


def evaluate_model(
    model: StagedViT,
    source: Source,
    suite: SuiteConfig = SuiteConfig(),
    *,
    surrogate: nn.Module | None = None,
    share: Share = ALONE,
    progress: bool = True,
) -> Evaluation:
    """Measure a model on the suite's columns.

    Each part's result goes to the store as it comes: a killed run goes on where it was, and another suite with some
    of the same settings computes only what differs. With several processes the parts go to the ranks in turn, and
    since a part's composition and seeds do not depend on who computes it, neither do its results.

    Args:
        source: the data set, `nslib.data.source.open_source`.
        surrogate: network on which damagenet's images are made, where the data set has none.
        share: of the parts, from `nslib.machine.processes`.
    Raises:
        ValueError: unknown column; a model in training mode; a surrogate or labels that do not fit the model.
        FloatingPointError: NaN logits; names column and images.
        FileNotFoundError: a folder that was set for c or damagenet is not whole.
    """
    bench = Bench(model, source, suite, surrogate)
    parts, missing = plan(bench)
    common = {"model": model_digest(model)}
    own = []
    total = sum(_passes(bench, part) for part in parts[share.rank :: share.count])
    bar = tqdm(
        total=total, desc=f"evaluate {model.name}", unit="pass", unit_scale=True, disable=not progress or share.rank > 0
    )
    with bar:
        for number in range(share.rank, len(parts), share.count):
            part = parts[number]
            bar.set_postfix_str(part.column)
            key = common | _inputs(bench, part)
            found = cached("evaluation", key, lambda p=part: _stored_hits(bench, p), version=VERSION)
            own.append((number, {variant: hits.numpy().astype(bool) for variant, hits in found.items()}))
            bar.update(_passes(bench, part))
    found = dict(share.gather(own))
    hits: dict[str, dict[str, list]] = {}
    for number, part in enumerate(parts):
        for variant, values in found[number].items():
            hits.setdefault(part.column, {}).setdefault(variant, []).append(values)
    joined = {c: {v: np.concatenate(values) for v, values in variants.items()} for c, variants in hits.items()}
    sources = {c: where for c in joined if (where := bench.origin(c))}
    return Evaluation(model.name, joined, missing, "c" in joined and bench.published("c"), sources)


def plan(bench: Bench) -> tuple[list[Part], dict[str, str]]:
    """The parts to compute, and the columns that cannot be, each with the folder that would have been read.

    Raises:
        ValueError: unknown column.
        FileNotFoundError: a folder that was set for c or damagenet is not whole.
    """
    columns = bench.suite.columns
    check_columns(columns)
    missing = {c: why for c in columns if (why := missing_of(c, bench))}
    beside = [BESIDE[c] for c in columns if c in BESIDE and c not in missing]
    beside = [c for c in beside if not missing_of(c, bench)]
    shown = [c for c in dict.fromkeys([*columns, *beside]) if c not in missing]
    return [part for c in shown for part in parts_of(c, bench)], missing


def _passes(bench: Bench, part: Part) -> int:
    given = part.column == "damagenet" and bench.published("damagenet")  # then there is no attack to make
    return (part.stop - part.start) * (1 if given else COLUMNS[part.column].passes(bench.suite))


def _inputs(bench: Bench, part: Part) -> dict[str, Any]:
    """Everything besides the model on which a part's result depends."""
    column = COLUMNS[part.column]
    settings = {name: getattr(bench.suite, name) for name in column.settings}
    reads = bench.reads(column.split)
    data = [bench.identity(split) for split in reads if not part.corruption or split in ("val", *_own(part))]
    made = {}
    if part.column == "damagenet" and not bench.published("damagenet"):
        made = {"transfer": TRANSFER_VERSION, **bench.transfer_inputs}
    elif part.column == "c" and not bench.published("c"):
        made = {"corruptions": CORRUPTIONS_VERSION}
    version = {} if column.version == 1 else {"column_version": column.version}
    return {"part": part._asdict(), "settings": settings, "data": data, **made, **version}


def _own(part: Part) -> list[str]:
    """The splits of a published ImageNet-C that one corruption is read from."""
    return [f"c/{part.corruption}/{severity}" for severity in SEVERITIES]


def _stored_hits(bench: Bench, part: Part) -> dict[str, torch.Tensor]:
    return {variant: hits.to(torch.uint8) for variant, hits in hits_of(bench, part).items()}


def dry_run(bench: Bench) -> pd.DataFrame:
    """What an evaluation would do: columns, images, forward passes, minutes by the speed of a small batch."""
    parts, missing = plan(bench)
    images = torch.rand(16, *bench.model.image_shape, generator=generator(0)).to(bench.model.device)
    with torch.inference_mode():
        bench.model(images).cpu()  # the first pass is slower
        started = time.perf_counter()
        bench.model(images).cpu()
    forward = (time.perf_counter() - started) / len(images)
    corruption = 0.0
    if any(p.corruption for p in parts) and not bench.published("c"):
        started = time.perf_counter()
        for name in CORRUPTIONS:
            corrupt(images[:4], name, 3, indices=range(4)).cpu()
        corruption = (time.perf_counter() - started) / 4 / len(CORRUPTIONS)
    rows = []
    for name in dict.fromkeys([p.column for p in parts]):
        own = [p for p in parts if p.column == name]
        passes = sum(_passes(bench, p) for p in own)
        made = passes * corruption if name == "c" else 0
        images_shown = max(p.stop for p in own) - bench.suite.first
        rows.append({"column": name, "images": images_shown, "forward passes": passes,
                     "minutes": (passes * forward + made) / 60, "missing": ""})  # fmt: skip
    rows += [
        {"column": c, "images": 0, "forward passes": 0, "minutes": 0.0, "missing": why} for c, why in missing.items()
    ]
    return pd.DataFrame(rows)
