"""What a column needs while it is measured: the model, its data, the suite's settings, and the transferred images."""

from __future__ import annotations

import math
import warnings
from functools import cached_property
from random import Random
from typing import Any

import cachetools
import torch
from torch import Tensor, nn

from nslib.attacks.surrogate import SurrogateCNN
from nslib.attacks.target import Target, name_of
from nslib.attacks.transfer import transfer_set
from nslib.config import SuiteConfig
from nslib.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from nslib.data.datasets import other_class
from nslib.data.shapes import Batch
from nslib.data.source import Source, check_classes, check_source, checked
from nslib.store import cached, digest, model_digest
from nslib.vit.staged import StagedViT, check_staged

TRANSFER_VERSION = 1  # part of every stored set: raise it when the same settings give other images
MADE_HERE = {"c": "ImageNet-C", "damagenet": "DAmageNet"}  # where the data set has not what is published by this name
FROM_VAL = MADE_HERE | {"stylized": "Stylized-ImageNet"}  # published sets that were made from images of val
PUBLISHED = "as published"  # so end the words of `Bench.origin` where it has
_ROUNDING = 1e-3  # of a level: what arithmetic adds to a bound that is one
_PUBLISHED_C = [f"c/{name}/{severity}" for name in CORRUPTIONS for severity in SEVERITIES]


class Bench:
    """A model with its data set, and what is asked of both.

    Args:
        surrogate: the network on which transferred images are made, in evaluation mode; None: they are not made.
    Raises:
        ValueError: model or surrogate in training mode, weights in 16 bits, a model with more classes than the data
            set, a surrogate that does not fit the model's images or classes, transferred images attacked by less than a
            level, or more patches for Patch-Fool than there are.
    """

    def __init__(self, model: StagedViT, source: Source, suite: SuiteConfig, surrogate: nn.Module | None = None):
        check_staged(model)
        model.check_frozen_use()
        _check_precision(model)
        check_source(source)
        check_classes(source, model)
        if surrogate is not None:
            _check_surrogate(surrogate, model)
            if 0 < suite.transfer_eps < 1 / 255:
                eps = f"{suite.transfer_eps:g}"
                raise ValueError(f"transfer_eps must be 0, or >= 1/255, the step in which images are kept, got {eps}")
        patches = model.token_shape[0]
        if "patchfool" in suite.columns and suite.patchfool_patches > patches:
            raise ValueError(f"patchfool_patches must be at most {patches}, all patches of {model.name}, got "
                             f"{suite.patchfool_patches}")  # fmt: skip
        self.model, self.source, self.suite, self.surrogate = model, source, suite, surrogate
        self._target = Target(model)
        self._published: dict[str, bool] = {}
        self._last: tuple[tuple[str, int, int], Batch] | None = None

    def of(self, model: StagedViT) -> Bench:
        """The same data and settings for another model of the same images and classes.

        Raises:
            ValueError: it has other classes or another number of them, so that the labels are not its own; or takes
                images of another size.
        """
        if model.image_shape != self.model.image_shape:
            raise ValueError(
                f"the other, {model.name}, takes images {model.image_shape} and {self.model.name} "
                f"{self.model.image_shape}: name the size for both (--img-size)"
            )
        if model.num_classes != self.model.num_classes:
            raise ValueError(
                f"the other, {model.name}, answers with {model.num_classes} classes and {self.model.name} with "
                f"{self.model.num_classes}: only models of the same classes can be compared"
            )
        if other := other_class(model.classes, self.model.classes):  # none where a model's are not its own
            raise ValueError(
                f"the other, {model.name}, was finetuned for class {other[0]} where {self.model.name} was for "
                f"{other[1]}: only models of the same classes can be compared"
            )
        return Bench(model, self.source, self.suite, self.surrogate)

    def take(self, split: str, start: int, stop: int) -> Batch:
        """Images start ... stop of a split on the model's device; the last ones asked for are kept.

        Raises:
            ValueError: as `checked`.
        """
        wanted = (split, start, stop)
        if self._last is None or self._last[0] != wanted:
            images, labels = checked(self.source.take(split, stop - start, start=start), stop - start, self.model)
            self._last = wanted, Batch(images.to(self.model.device), labels.to(self.model.device))
        return self._last[1]

    def published(self, split: str) -> bool:
        """Whether the data set has these images itself, so that they need not be made.

        Warns:
            UserWarning: a folder lies at their customary place and is not whole.
        Raises:
            FileNotFoundError: a folder was set for them, and it is not there or not whole; says what it lacks.
            ValueError: the folder holds another data set, or the parts of ImageNet-C other images than each other.
        """
        if split not in self._published:
            absent = self._absent(_PUBLISHED_C if split == "c" else [split])
            named = self.source.named(split) if absent else ""
            if named == "setting":
                raise FileNotFoundError(
                    f"{absent}; data.{split} was set to a folder that is not there or not whole: complete it, or "
                    f"leave data.{split} empty, and such images are made here"
                )
            if named:
                warnings.warn(f"{absent}; the folder is passed over, and such images are made here", stacklevel=2)
            self._published[split] = not absent
        return self._published[split]

    def origin(self, split: str) -> str:
        """Where images that may have been made from those of val come from, in words; empty for all others."""
        if split not in MADE_HERE:
            read = split in FROM_VAL and self.identity(split).get("kind") == "folder"
            return f"{FROM_VAL[split]} {PUBLISHED}" if read else ""
        if self.published(split):
            return f"{MADE_HERE[split]} {PUBLISHED}"
        if split == "c":
            return "made here"
        return f"made here on {self.surrogate.name if isinstance(self.surrogate, StagedViT) else 'the surrogate'}"

    def _absent(self, splits: list[str]) -> str:
        """Why the first split that cannot be read cannot; empty where all can."""
        return next((why for why in map(self.source.missing, splits) if why), "")

    def reads(self, split: str) -> list[str]:
        """Splits of the data set from which a column's images come."""
        if split in MADE_HERE and not self.published(split):
            return ["val"]
        return _PUBLISHED_C if split == "c" else [split]

    def missing(self, split: str) -> str:
        """Why the images of a column are not there, with the folder that would have been read; empty if they are."""
        if split == "damagenet" and self.surrogate is None and not self.published(split):
            return f"{self.source.missing(split)}; and no surrogate to make such images on"
        return self._absent(self.reads(split))

    def count(self, split: str) -> float:
        """Images there are, inf for an endless data set."""
        counts = (self.source.count(s) for s in self.reads(split))
        return min(math.inf if n is None else n for n in counts)

    def identity(self, split: str) -> dict[str, Any]:
        """What the images of a split depend on."""
        return self.source.identity(split)

    def logits(self, images: Tensor, split: str) -> Tensor:
        """(B, C, H, W) -> (B, K), -inf for classes that may not be answered in this split.

        Raises:
            FloatingPointError: NaN logits.
        """
        with torch.inference_mode():
            logits = self._target(images)
        allowed = self.source.classes(split)
        if allowed is None:
            return logits
        masked = torch.full_like(logits, -torch.inf)
        masked[:, allowed] = logits[:, allowed]
        return masked

    def corrupted(self, name: str, severity: int, start: int, stop: int) -> Batch:
        """Images start ... stop of val under a corruption; 4 GB of them are kept for later models."""
        levels = _corrupted(self, name, severity, start, stop)
        images, labels = self.take("val", start, stop)
        return Batch(levels.to(images.device).float() / 255, labels)

    def transferred(self, start: int, stop: int) -> Batch:
        """Images start ... stop of val attacked on the surrogate, made once for each surrogate, attack and data set."""
        images, labels = self.take("val", start, stop)
        eps = self.suite.transfer_eps
        attack = {"eps": eps, "smoothing": self.suite.transfer_smoothing}

        def attacked() -> dict:
            found = transfer_set(self.surrogate, images, labels, **attack)
            return {"levels": _levels(found, within=(images - eps, images + eps))}

        key = {"attack": attack, "start": start, "stop": stop, **self.transfer_inputs}
        levels = cached("transferred", key, attacked, version=TRANSFER_VERSION)["levels"]
        return Batch(levels.to(self.model.device).float() / 255, labels)

    @cached_property
    def transfer_inputs(self) -> dict:
        """What transferred images are made of, as digests."""
        return {"surrogate": model_digest(self.surrogate), "clean": self.identity("val")}


# Every model is shown the same images in the same order, so that the least recently used is needed next: of more than
# fit, giving up any at random keeps a share of them, and giving up that one would keep none.
@cachetools.cached(
    cachetools.RRCache(2**32, choice=Random(0).choice, getsizeof=lambda levels: levels.nbytes),
    key=lambda bench, *part: digest([bench.identity("val"), bench.model.image_shape, bench.suite.seed, *part]),
)
def _corrupted(bench: Bench, name: str, severity: int, start: int, stop: int) -> Tensor:
    images, _ = bench.take("val", start, stop)
    return _levels(corrupt(images, name, severity, indices=range(start, stop), seed=bench.suite.seed))


def _levels(images: Tensor, *, within: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Images in [0, 1] as levels of the 8-bit grid, on the CPU; the nearest of those that lie within two bounds."""
    levels = (images * 255).round()
    if within:
        low, high = (bound.clamp(0, 1) * 255 for bound in within)
        levels = levels.clamp((low - _ROUNDING).ceil(), (high + _ROUNDING).floor())
    return levels.to("cpu", torch.uint8)


def _check_precision(model: StagedViT) -> None:
    """Refuse weights other than float32: of 1/255 bfloat16 leaves nothing, and the attacks' libraries know no other."""
    dtype = model.vit.patch_embed.proj.weight.dtype
    if dtype != torch.float32:
        raise ValueError(f"{model.name} has weights of {dtype}, attacks need float32: evaluate model.float()")


def _check_surrogate(surrogate: nn.Module, model: StagedViT) -> None:
    if surrogate.training:
        raise ValueError(f"surrogate {name_of(surrogate)} is in training mode: call surrogate.eval() first")
    if isinstance(surrogate, StagedViT) and surrogate.image_shape != model.image_shape:
        raise ValueError(
            f"surrogate {surrogate.name} takes images {surrogate.image_shape}, {model.name} {model.image_shape}: "
            "name one of the same size, or none by surrogate= (--set surrogate=)"
        )
    channels, side, _ = model.image_shape
    if isinstance(surrogate, SurrogateCNN) and surrogate.size != side:
        raise ValueError(f"surrogate {name_of(surrogate)} was made for images of {surrogate.size} px, {model.name} "
                         f"takes {side}: load_surrogate(..., size={side})")  # fmt: skip
    if isinstance(surrogate, SurrogateCNN) and channels != 3:
        raise ValueError(f"surrogate {name_of(surrogate)} takes coloured images, {model.name} {channels} channels: "
                         "name another, or none by surrogate=")  # fmt: skip
    with torch.inference_mode():
        classes = surrogate(torch.zeros(1, *model.image_shape, device=model.device)).shape[1]
    if classes != model.num_classes:
        raise ValueError(
            f"surrogate {name_of(surrogate)} knows {classes} classes, {model.name} {model.num_classes}: "
            "name one that was trained on the same data set"
        )
