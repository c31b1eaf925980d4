"""Data sets of one's own: anything with a length and items (image, label), as torch and torchvision have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from nslib.data.shapes import Batch
from nslib.data.transforms import eval_transform
from nslib.runtime import generator
from nslib.staged import StagedViT
from nslib.store import tensor_digest

_LOOKED_AT = 64  # images of a split, by which it is told from another


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
        names: of the classes, in the order of their labels, which a finetuned head keeps; default: their numbers.
    Raises:
        ValueError: a split is empty, gives another image each time that it is asked, or gives no image; names are not
            as many as the model's classes.
    """

    def __init__(self, model: StagedViT, splits: Mapping[str, Indexed], *, names: Sequence[str] = (), seed: int = 0):
        self.splits, self.seed = dict(splits), seed
        self.labels = {name: label for label, name in enumerate(names)}
        self._transform = eval_transform(model)
        self._orders: dict[str, Tensor] = {}
        self._identities: dict[str, dict[str, Any]] = {}
        self._numbers = range(model.num_classes)
        if names and len(self.labels) != model.num_classes:
            raise ValueError(f"names must be {model.num_classes}, one for each class of {model.name}, got {names}")
        for name, items in self.splits.items():
            if not len(items):
                raise ValueError(f"split {name} holds no image")
            self._orders[name] = torch.randperm(len(items), generator=generator(seed))
            (first, _), (again, _) = (self._read(name, 0) for _ in range(2))
            if not torch.equal(first, again):
                raise ValueError(f"split {name} gives another image each time: leave its augmentation out, and ask "
                                 "finetuning for some (FinetuneConfig.augment, mixup, ...)")  # fmt: skip

    def take(self, split: str, n: int, *, start: int = 0) -> Batch:
        """As `Source.take`.

        Raises:
            ValueError: no such split, or it has not so many images.
        """
        if why := self.missing(split):
            raise ValueError(why)
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
        """As `Source.count`."""
        return len(self.splits[split])

    def missing(self, split: str) -> str:
        """As `Source.missing`."""
        return "" if split in self.splits else f"the data set has no {split}, only {', '.join(self.splits)}"

    def named(self, split: str) -> bool:
        """As `Source.named`."""
        return False

    def classes(self, split: str) -> None:
        """As `Source.classes`."""
        return None

    def names(self) -> list[str]:
        """As `Source.names`."""
        return list(self.labels or map(str, self._numbers))

    def identity(self, split: str) -> dict[str, Any]:
        """As `Source.identity`, by the number of images and the contents of some, evenly spread."""
        if split not in self._identities:
            count = self.count(split)
            looked_at = tensor_digest(*self.pick(split, range(0, count, -(-count // _LOOKED_AT))))
            told = {"kind": "dataset", "split": split, "seed": self.seed, "images": count, "looked_at": looked_at}
            self._identities[split] = told
        return self._identities[split]

    def _read(self, split: str, place: int) -> tuple[Tensor, int]:
        image, label = self.splits[split][place]
        if isinstance(image, Image.Image):
            image = self._transform(image.convert("RGB"))
        if not isinstance(image, Tensor):
            raise ValueError(f"an image of split {split} must be a PIL image or a tensor (C, H, W), got a "
                             f"{type(image).__name__}: torch.as_tensor of it, or take its transform away")  # fmt: skip
        return image.float() / 255 if image.dtype == torch.uint8 else image, int(label)
