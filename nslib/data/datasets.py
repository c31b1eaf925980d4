"""Data sets of one's own: anything with a length and items (image, label), as torch and torchvision have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from nslib.data.files import in_colours
from nslib.data.shapes import Batch
from nslib.data.transforms import eval_transform, in_words
from nslib.runtime import generator
from nslib.store import digest, tensor_digest
from nslib.vit.staged import StagedViT, check_staged

_TRIED = 16  # items of a split that are asked for twice
_AT_ONCE = 256  # items that are read for an identity


class Indexed(Protocol):
    """A map-style data set, such as `torch.utils.data.TensorDataset` or `torchvision.datasets.CIFAR10`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, Any]: ...


class DatasetSource:
    """Map-style data sets as the splits of a `nslib.data.source.Source`, for finetuning and evaluation.

    An item is an image and its label: a PIL image, brought to the model's size as its own timm configuration says, or a
    tensor (C, H, W) of that size, float in [0, 1] or of 8 bits. Each split is put into an order drawn from `seed`, so
    that the first n are spread over the classes. Items are read in several threads at once.

    Args:
        splits: by name: `train` for finetuning, `val` for evaluation, where wanted v2, a, r, sketch and stylized.
        names: of the classes, in the order of their labels or with these (torchvision's `class_to_idx`), which a
            finetuned head keeps; default: those of the model's head.
        version: what tells these data sets from others, such as `cifar10`; default: their contents, for which each
            split that is used is read once.
    Raises:
        TypeError: the model is not wrapped.
        ValueError: a split is none, is empty, gives another image each time that it is asked, or gives no image; names
            are not as many as the model's classes, or not those of its head.
    """

    def __init__(
        self,
        model: StagedViT,
        splits: Mapping[str, Indexed],
        *,
        names: Sequence[str] | Mapping[str, int] = (),
        seed: int = 0,
        version: str = "",
    ):
        check_staged(model)
        self.splits, self.seed, self.version = _checked(splits), seed, version
        self.labels = _labels(model, names)
        self._shape, self._classes, self._transform = model.image_shape, model.num_classes, eval_transform(model)
        self._orders = {
            name: torch.randperm(len(items), generator=generator(seed)) for name, items in self.splits.items()
        }
        self._identities: dict[str, dict[str, Any]] = {}
        for name, items in self.splits.items():
            places = range(0, len(items), -(-len(items) // _TRIED))
            (first, _), (again, _) = (self.pick(name, places) for _ in range(2))
            if not torch.equal(first, again):
                raise ValueError(f"split {name} gives another image each time: leave its augmentation out, and ask "
                                 "finetuning for some (FinetuneConfig.augment, mixup, ...)")  # fmt: skip

    def take(self, split: str, n: int, *, start: int = 0) -> Batch:
        """As `Source.take`.

        Raises:
            ValueError: no such split, or it has not so many images.
        """
        if start < 0 or n < 1 or start + n > self.count(split):
            raise ValueError(f"split {split} holds {self.count(split)} images, asked for {start} to {start + n}")
        return self.pick(split, range(start, start + n))

    def pick(self, split: str, rows: Sequence[int]) -> Batch:
        """As `Source.pick`."""
        places = self._orders[split][list(rows)].tolist()
        with ThreadPoolExecutor() as pool:
            images, labels = zip(*pool.map(lambda place: self._read(split, place), places), strict=True)
        return Batch(torch.stack(images), torch.tensor(labels))

    def count(self, split: str) -> int:
        """As `Source.count`.

        Raises:
            ValueError: no such split.
        """
        if why := self.missing(split):
            raise ValueError(why)
        return len(self.splits[split])

    def missing(self, split: str) -> str:
        """As `Source.missing`."""
        return "" if split in self.splits else f"the data set has no {split}, only {', '.join(self.splits)}"

    def named(self, split: str) -> str:
        """As `Source.named`."""
        return ""

    def classes(self, split: str) -> None:
        """As `Source.classes`."""
        return None

    def names(self) -> list[str]:
        """As `Source.names`; their numbers where they have no names."""
        return list(self.labels or map(str, range(self._classes)))

    def identity(self, split: str) -> dict[str, Any]:
        """As `Source.identity`: order, names of the classes, and a digest of all images and labels, or the version and
        the transform of images."""
        if split not in self._identities:
            count, told = self.count(split), {"version": self.version, "transform": in_words(self._transform)}
            if not self.version:
                parts = (range(begin, min(begin + _AT_ONCE, count)) for begin in range(0, count, _AT_ONCE))
                told = {"contents": digest([tensor_digest(*self.pick(split, rows)) for rows in parts])}
            told |= {"classes": list(self.labels)} if self.labels else {}
            self._identities[split] = {"kind": "dataset", "split": split, "seed": self.seed, "images": count, **told}
        return self._identities[split]

    def _read(self, split: str, place: int) -> tuple[Tensor, int]:
        item, where = self.splits[split][place], f"item {place} of split {split}"
        if not (isinstance(item, tuple | list) and len(item) == 2):
            count = f" of {len(item)}" if hasattr(item, "__len__") else ""
            raise ValueError(f"{where} must be (image, label), got a {type(item).__name__}{count}")
        image, label = item
        if isinstance(image, Image.Image):
            image = self._transform(in_colours(image))
        if not isinstance(image, Tensor) or tuple(image.shape) != self._shape:
            got = f"a tensor {tuple(image.shape)}" if isinstance(image, Tensor) else f"a {type(image).__name__}"
            raise ValueError(f"the image of {where} must be a PIL image or a tensor {self._shape}, got {got}: take its "
                             "transform away, or resize it")  # fmt: skip
        label = label.item() if isinstance(label, Tensor) and label.numel() == 1 else label
        if not isinstance(label, Integral):
            raise ValueError(f"the label of {where} must be a whole number, got a {type(label).__name__}")
        return image.float() / 255 if image.dtype == torch.uint8 else image, int(label)


def _checked(splits: Mapping[str, Indexed]) -> dict[str, Indexed]:
    if not isinstance(splits, Mapping):
        raise ValueError(f'splits must be data sets by name, such as {{"train": ...}}, got a {type(splits).__name__}')
    for name, items in splits.items():
        if not (hasattr(items, "__len__") and hasattr(items, "__getitem__")):
            raise ValueError(f"split {name} must have a length and items, got a {type(items).__name__}")
        if not len(items):
            raise ValueError(f"split {name} holds no image")
    return dict(splits)


def _labels(model: StagedViT, names: Sequence[str] | Mapping[str, int]) -> dict[str, int]:
    """Each name with its label, by default those of the model's head; none where neither has names."""
    names = sorted(names, key=names.get) if isinstance(names, Mapping) else names
    names = list(map(str, names)) or model.classes
    if names and (len(set(names)) != len(names) or len(names) != model.num_classes):
        raise ValueError(f"names must be {model.num_classes} that differ, one for each class of {model.name}, got "
                         f"{len(names)}: {', '.join(names)}")  # fmt: skip
    if other := other_class(names, model.classes):
        raise ValueError(f"the head of {model.name} was finetuned for class {other[1]} where names has {other[0]}: "
                         "name them so, or give it another by nslib.models.reset_head")  # fmt: skip
    return {name: label for label, name in enumerate(names)}


def other_class(ours: Sequence[str], others: Sequence[str]) -> tuple[str, str] | None:
    """The first names of classes that stand in the same place and differ; None where there are none, or no names."""
    return next((pair for pair in zip(ours, others, strict=False) if pair[0] != pair[1]), None)
