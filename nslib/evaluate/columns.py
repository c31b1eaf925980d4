"""The columns of Table 2: which images each one shows to the model, after what attack or corruption."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from nslib.attacks.authors import attack_normalised
from nslib.attacks.auto import FEWEST, auto_attack
from nslib.attacks.carlini import SEARCHES, carlini_wagner
from nslib.attacks.gradient import fgsm, pgd
from nslib.attacks.patchfool import patch_fool
from nslib.attacks.transfer import STEPS as TRANSFER_STEPS
from nslib.config import SuiteConfig
from nslib.data.corruptions import CORRUPTIONS, SEVERITIES, SMALLEST
from nslib.data.hashing import key
from nslib.evaluate.bench import Bench
from nslib.evaluate.metrics import BY_CUE
from nslib.runtime import generator
from nslib.vit.attention_maps import has_maps
from nslib.vit.staged import StagedViT

BACKWARD = 2  # forward passes that the way back costs


class Part(NamedTuple):
    """The unit of an evaluation: a column, or one corruption of it, on images start ... stop, always the same ones."""

    column: str
    corruption: str  # of column c, else empty
    start: int
    stop: int

    def __str__(self) -> str:
        name = f"{self.column} {self.corruption}".strip()
        return f"column {name}, images {self.start} to {self.stop}"


class View(NamedTuple):
    """Images (B, C, H, W) to be classified, their labels (B,), and which of a column's variants they are."""

    variant: str  # such as fog/3
    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        split: of the data set, whose classes may be answered.
        show: what the model is asked about.
        settings: names of the suite's settings on which this column depends, and no other.
        costly: measured on suite.costly_images.
        passes: forward passes an image, one way back counted as two, for the estimate: all steps of a search, but of
            AutoAttack only its first attack, under which undefended models fall, and of Patch-Fool no way back from
            attention.
        library: of the `attacks` extra, without which it cannot be shown.
        unfit: why it cannot be made for a model; empty if it can.
        version: of what is shown; raise it when the same settings show something else. Part of a stored result unless
            it is 1.
    """

    split: str
    show: Callable[[Bench, Part], Iterator[View]]
    settings: tuple[str, ...] = ()
    costly: bool = False
    passes: Callable[[SuiteConfig], int] = lambda suite: 1
    library: str = ""
    unfit: Callable[[StagedViT], str] = lambda model: ""
    version: int = 1


def _shown(split: str) -> Column:
    """The images of a split as they are."""

    def show(bench: Bench, part: Part) -> Iterator[View]:
        yield View("", *bench.take(split, part.start, part.stop))

    return Column(split, show)


def _attacked(attack: Callable[[Bench, Tensor, Tensor, Part], Tensor], **facts) -> Column:
    """Clean images, attacked."""

    def show(bench: Bench, part: Part) -> Iterator[View]:
        images, labels = bench.take("val", part.start, part.stop)
        yield View("", attack(bench, images, labels, part), labels)

    return Column("val", show, **facts)


def _fgsm(bench: Bench, images: Tensor, labels: Tensor, part: Part) -> Tensor:
    return _by_protocol(bench, images, labels, partial(fgsm, eps=bench.suite.fgsm_eps))


def _pgd(bench: Bench, images: Tensor, labels: Tensor, part: Part) -> Tensor:
    eps, steps = bench.suite.pgd_eps, bench.suite.pgd_steps
    return _by_protocol(bench, images, labels, partial(pgd, eps=eps, step=eps / 4, steps=steps))


def _by_protocol(bench: Bench, images: Tensor, labels: Tensor, attack: Callable[..., Tensor]) -> Tensor:
    if bench.suite.protocol == "authors":
        return attack_normalised(bench.model, images, labels, attack)
    return attack(bench.model, images, labels)


def _carlini(bench: Bench, images: Tensor, labels: Tensor, part: Part) -> Tensor:
    suite = bench.suite
    nearest = carlini_wagner(bench.model, images, labels, steps=suite.cw_steps, early_stop=suite.cw_early_stop)
    within = (nearest.norms <= suite.cw_budget).reshape(-1, 1, 1, 1)
    return torch.where(within, nearest.images, images)


def _auto(bench: Bench, images: Tensor, labels: Tensor, part: Part) -> Tensor:
    seed = key(bench.suite.seed, part.start).item()
    return auto_attack(bench.model, images, labels, eps=bench.suite.autoattack_eps, seed=seed)


def _patch_fool(bench: Bench, images: Tensor, labels: Tensor, part: Part) -> Tensor:
    suite = bench.suite
    layer = min(4, len(bench.model.vit.blocks) - 1)  # as published, for models that are deep enough
    budget = {
        "layer": layer,
        "patches": suite.patchfool_patches,
        "bound": suite.patchfool_bound,
        "steps": suite.patchfool_steps,
    }
    generators = [generator(k) for k in key(suite.seed, torch.arange(part.start, part.stop)).tolist()]
    return patch_fool(bench.model, images, labels, generator=generators, **budget)


def _without_maps(model: StagedViT) -> str:
    return "" if has_maps(model) else f"Patch-Fool needs timm's standard Attention, which {model.name} has not"


def _of_few_classes(model: StagedViT) -> str:
    enough = model.num_classes >= FEWEST
    return "" if enough else f"AutoAttack needs {FEWEST} classes: {model.name} has {model.num_classes}"


def _no_corruptions(model: StagedViT) -> str:
    channels, *sides = model.image_shape
    if channels != 3:
        return f"corruptions are of three channels: {model.name} takes {channels}"
    side = min(sides)
    return "" if side >= SMALLEST else f"corruptions need images of at least {SMALLEST} px: {model.name} takes {side}"


def _damagenet(bench: Bench, part: Part) -> Iterator[View]:
    """The published set where the data set has it, else images attacked on the surrogate."""
    if bench.published("damagenet"):
        yield View("", *bench.take("damagenet", part.start, part.stop))
    else:
        yield View("", *bench.transferred(part.start, part.stop))


def _corrupted(bench: Bench, part: Part) -> Iterator[View]:
    """ImageNet-C where the data set has it, else one corruption of clean images at its five severities."""
    variants = {severity: f"{part.corruption}/{severity}" for severity in SEVERITIES}
    if bench.published("c"):
        for variant in variants.values():
            yield View(variant, *bench.take(f"c/{variant}", part.start, part.stop))
        return
    for severity, variant in variants.items():
        yield View(variant, *bench.corrupted(part.corruption, severity, part.start, part.stop))


_TRANSFER = ("transfer_eps", "transfer_smoothing")
_PATCHFOOL = ("patchfool_steps", "patchfool_patches", "patchfool_bound", "seed")

COLUMNS: dict[str, Column] = {
    "clean": _shown("val"),
    "patchfool": _attacked(
        _patch_fool,
        settings=_PATCHFOOL,
        costly=True,
        passes=lambda s: s.patchfool_steps * (1 + BACKWARD),
        unfit=_without_maps,
        version=2,
    ),
    "cw": _attacked(
        _carlini,
        settings=("cw_budget", "cw_steps", "cw_early_stop"),
        costly=True,
        passes=lambda s: SEARCHES * s.cw_steps * (1 + BACKWARD),
        library="foolbox",
    ),
    "fgsm": _attacked(_fgsm, settings=("fgsm_eps", "protocol"), passes=lambda s: 2 + BACKWARD),
    "pgd": _attacked(
        _pgd,
        settings=("pgd_eps", "pgd_steps", "protocol"),
        passes=lambda s: 1 + s.pgd_steps * (1 + BACKWARD),
    ),
    "autoattack": _attacked(
        _auto,
        settings=("autoattack_eps", "seed"),
        costly=True,
        passes=lambda s: 400,
        library="pyautoattack",
        unfit=_of_few_classes,
        version=2,
    ),
    "damagenet": Column(
        "damagenet", _damagenet, settings=_TRANSFER, passes=lambda s: 1 + TRANSFER_STEPS * (1 + BACKWARD)
    ),
    "a": _shown("a"),
    "clean_a": _shown("val:a"),
    "c": Column(
        "c",
        _corrupted,
        settings=("seed",),
        passes=lambda s: len(SEVERITIES),
        library="imagecorruptions",
        unfit=_no_corruptions,
    ),
    "v2": _shown("v2"),
    "r": _shown("r"),
    "clean_r": _shown("val:r"),
    "sketch": _shown("sketch"),
    "stylized": _shown("stylized"),
    "cue_conflict": _shown("cue_conflict"),
}
COSTLY = tuple(name for name, column in COLUMNS.items() if column.costly)
BESIDE = {"a": "clean_a", "r": "clean_r"}  # accuracy on clean images of the same classes, where these are a subset


def check_columns(names: Sequence[str]) -> None:
    """Refuse names that are none of these columns, by a ValueError."""
    unknown = [name for name in names if name not in COLUMNS]
    if unknown:
        raise ValueError(f"no column {', '.join(map(repr, unknown))}: there are {', '.join(COLUMNS)}")


def missing_of(name: str, bench: Bench) -> str:
    """Why a column cannot be shown: the folder that would have been read, the library, the model; empty if it can.

    Raises:
        FileNotFoundError: as `Bench.published`.
    """
    column = COLUMNS[name]
    absent = bench.missing(column.split)
    if absent or (name == "c" and bench.published("c")):
        return absent
    if name in BY_CUE and not hasattr(bench.source, "open"):
        return f"{name} needs files that tell both of their cues, as a FolderSource has"
    if column.library and not find_spec(column.library):
        return f"{column.library} is not installed: pip install 'nslib[attacks]'"
    return column.unfit(bench.model)


def parts_of(name: str, bench: Bench) -> list[Part]:
    """The parts of a column, of fixed composition: the same whoever computes them, and in whatever order.

    Raises:
        ValueError: the split ends before the first image.
    """
    column = COLUMNS[name]
    suite = bench.suite
    wanted = suite.costly_images if column.costly else suite.images
    if name == "c" and suite.c_images:
        wanted = min(suite.c_images, wanted)
    stop = min(suite.first + wanted, bench.count(column.split))
    if stop <= suite.first:
        raise ValueError(f"first must be below the {stop} images of {column.split}, got {suite.first}")
    starts = range(suite.first, stop, suite.batch)
    kinds = CORRUPTIONS if name == "c" else ("",)
    places = [(kind, start) for start in starts for kind in kinds]
    if name == "c" and bench.published("c"):
        places.sort(key=lambda place: kinds.index(place[0]))  # its 75 folders are read one after the other
    return [Part(name, kind, start, min(start + suite.batch, stop)) for kind, start in places]


def hits_of(bench: Bench, part: Part) -> dict[str, Tensor]:
    """Which images of a part the model gets right, (B,) bool for each variant; of cue_conflict, which cue it follows.

    Raises:
        FloatingPointError: NaN logits; names the column and the images.
        ValueError: labels that are no classes of the model.
    """
    column = COLUMNS[part.column]
    hits = {}
    try:
        for variant, images, labels in column.show(bench, part):
            logits = bench.logits(images, column.split)
            if part.column in BY_CUE:
                shape, texture = bench.source.open(column.split).follows(logits, labels)
                hits |= {"shape": shape.cpu(), "texture": texture.cpu()}
            else:
                hits[variant] = (logits.argmax(1) == labels).cpu()
    except (FloatingPointError, ValueError) as error:
        raise type(error)(f"{part}: {error}") from error
    return hits
