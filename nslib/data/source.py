"""One way to ask for images, whether they are rendered or read from folders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from timm.data import ImageNetInfo
from torch import Tensor

from nslib.config import DataConfig
from nslib.data.cue_conflict import CueConflict
from nslib.data.datasets import DatasetSource
from nslib.data.families import FAMILIES, check_same_images, family_folder, family_labels, open_family
from nslib.data.files import ImageFiles
from nslib.data.folders import FolderImages, of_imagenet, own_labels
from nslib.data.geometry import CLASSES
from nslib.data.shapes import SPLITS, VERSION, Batch, render
from nslib.description import code_of, given, short
from nslib.vit.staged import StagedViT

_TREE = ("train", "val", "val:a", "val:r")
_TOLD = {"cfg", "model", "labels", "seed", "size", "device", "ends"}  # attributes of a source, told by its identity
_KEPT_OPEN = 12  # splits whose file names are kept: those of all 75 parts of ImageNet-C would fill 3 GiB


class Source(Protocol):
    """A data set for one model.

    Finetuning asks for take, pick, count and identity of `train`; evaluation for all but pick and names.

    Splits are `train`, `val`, `v2`, `a`, `r`, `sketch`, `stylized`. Folders have `damagenet`, `cue_conflict` and
    `c/<corruption>/<severity>` too, and `val:a`, `val:r`: the images of `val` that are of the classes of `a`, of `r`.
    """

    def take(self, split: str, n: int, *, start: int = 0) -> Batch:
        """Images start ... start + n of a split, (n, C, H, W) in [0, 1] with labels (n,)."""
        ...

    def pick(self, split: str, rows: Sequence[int]) -> Batch:
        """Images at these places of a split, as `take`."""
        ...

    def count(self, split: str) -> int | None:
        """How many images a split has, None where it has no end."""
        ...

    def missing(self, split: str) -> str:
        """Empty where a split can be read, else the reason, with the folder or the setting that it lacks.

        Raises:
            ValueError: the folder is there but holds another data set.
        """
        ...

    def named(self, split: str) -> str:
        """How a folder is given for a split: by its `setting`, by lying at its customary `place`, or not: empty."""
        ...

    def classes(self, split: str) -> Tensor | None:
        """Labels (n,) to which logits are to be masked, ascending; None for all."""
        ...

    def names(self) -> list[str]:
        """The classes in words, in the order of their labels."""
        ...

    def identity(self, split: str) -> dict[str, Any]:
        """Plain values that change whenever images, labels, order or classes of a split do: a part of cache keys.

        Files are looked at once: this may be asked often.
        """
        ...


def checked(batch: Batch, n: int, model: StagedViT) -> Batch:
    """A batch from any source as the model takes it: images (n, C, H, W) in the type of its weights, labels (n,).

    Raises:
        ValueError: not n images with a label each, or a value that is no image's or no class of the model.
    """
    images, labels = batch
    if not (isinstance(images, Tensor) and isinstance(labels, Tensor)):
        got = f"{type(images).__name__} and {type(labels).__name__}"
        raise ValueError(f"images and labels of a data set must be tensors, got {got}: torch.as_tensor of each")
    if len(images) != n or labels.shape != (n,) or labels.is_floating_point() or not images.is_floating_point():
        got = f"images {tuple(images.shape)} {images.dtype} with labels {tuple(labels.shape)} {labels.dtype}"
        raise ValueError(f"the data set was asked for {n} images in [0, 1] with labels ({n},) of integers, got {got}")
    model.check_images(images)
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high >= model.num_classes:
        raise ValueError(
            f"labels must lie in 0..{model.num_classes - 1}, the classes of {model.name}, got {low}..{high}: give "
            f"it a head by nslib.models.reset_head(model, num_classes={high + 1}) (nslib finetune --num-classes)"
        )
    return Batch(images.to(model.vit.patch_embed.proj.weight.dtype), labels.long())


def check_source(source: object) -> None:
    """Refuse the settings of a data set in its place.

    Raises:
        TypeError: so it is.
    """
    if isinstance(source, DataConfig):
        raise TypeError("source must be a data set, got a DataConfig: nslib.open_source(cfg, model) opens it")


def check_classes(source: Source, model: StagedViT) -> None:
    """Refuse a model without a head, or with more classes than the shapes. Folders label by all of ImageNet-1k, however
    few they hold.

    Raises:
        ValueError: so it is.
    """
    if not model.num_classes:
        raise ValueError(f"{model.name} has no classifier: give it one by nslib.models.reset_head(model, "
                         "num_classes=N) (nslib finetune --num-classes N)")  # fmt: skip
    if (names := own_classes(source)) and len(names) != model.num_classes:
        raise ValueError(f"the data set was opened for {len(names)} classes and {model.name} has {model.num_classes} "
                         "now: open it after the model has its head")  # fmt: skip
    if isinstance(source, ShapesSource) and model.num_classes > len(CLASSES):
        raise ValueError(
            f"shapes has {len(CLASSES)} classes and the head of {model.name} {model.num_classes}: name images of its "
            f"own classes (--imagenet FOLDER), or give it another head by nslib.models.reset_head(model, "
            f"num_classes={len(CLASSES)}) (nslib finetune --num-classes {len(CLASSES)})"
        )


class ShapesSource:
    """The embedded data set at the model's image size, rendered on the model's device.

    Its splits have no end, but train ends after cfg.images where these are asked for.
    """

    def __init__(self, cfg: DataConfig, model: StagedViT):
        _, height, width = model.image_shape
        if height != width:
            raise ValueError(
                f"shapes are square, {model.name} takes {height} x {width}: make it with img_size=({height}, {height})"
            )
        self.size, self.seed, self.device = height, cfg.seed, model.device
        self.ends = {"train": cfg.images} if cfg.images else {}

    def take(self, split: str, n: int, *, start: int = 0) -> Batch:
        return self.pick(split, range(start, start + n))

    def pick(self, split: str, rows: Sequence[int]) -> Batch:
        end = self.ends.get(split)
        if end is not None and len(rows) and max(rows) >= end:
            raise ValueError(f"data.images = {end}, asked for image {max(rows)} of {split}: raise it, or set it to 0")
        return render(split, torch.tensor(rows), seed=self.seed, size=self.size, device=self.device)

    def count(self, split: str) -> int | None:
        return self.ends.get(split)

    def missing(self, split: str) -> str:
        told = f"the embedded shapes have no {split}, only {', '.join(SPLITS)}: pass --imagenet FOLDER"
        return "" if split in SPLITS else told

    def named(self, split: str) -> str:
        return ""

    def classes(self, split: str) -> None:
        return None

    def names(self) -> list[str]:
        return list(CLASSES)

    def identity(self, split: str) -> dict[str, Any]:
        told = {"images": self.ends[split]} if split in self.ends else {}
        told |= _heir(self, ShapesSource)
        return {"kind": "shapes", "split": split, "seed": self.seed, "size": self.size, "version": VERSION, **told}


class FolderSource:
    """An ImageNet-style folder and its family; each split is opened when first asked for.

    Labels are those of ImageNet for a model with its 1,000 classes. For any other, or 1,000 folders of other names, the
    class folders of train are its classes, or those that its weights were finetuned for, and there is no family.

    Raises:
        FileNotFoundError, ValueError: as `own_labels`.
    """

    def __init__(self, cfg: DataConfig, model: StagedViT):
        imagenet = not model.classes and of_imagenet(cfg.root, model.num_classes)
        self.labels = None if imagenet else own_labels(cfg.root, model.num_classes, model.classes)
        self.cfg, self.model = cfg, model
        self._opened: dict[str, ImageFiles] = {}
        self._counts: dict[str, int] = {}
        self._identities: dict[str, dict[str, Any]] = {}
        self._first_part: ImageFiles | None = None  # of ImageNet-C, with which the others are compared

    def open(self, split: str) -> ImageFiles:
        """The files of a split; those of `cue_conflict` are a `CueConflict`.

        Raises:
            FileNotFoundError: the split is not there.
            ValueError: no such split, its folder is of another family, or a part of ImageNet-C holds other images than
                the part that was opened first.
        """
        if split not in self._opened:
            images = self._open(split)
            if len(self._opened) == _KEPT_OPEN:
                del self._opened[next(iter(self._opened))]
            self._opened[split], self._counts[split] = images, len(images)
        return self._opened[split]

    def take(self, split: str, n: int, *, start: int = 0) -> Batch:
        images = self.open(split)
        if n < 1 or start < 0:
            raise ValueError(f"images to take must be >= 1, from place 0 on, got {n} from {start}")
        if start + n > len(images):
            raise ValueError(f"{images.folder} holds {len(images)} images, asked for {start} to {start + n}: ask for "
                             "fewer, as profile imagenet_small does")  # fmt: skip
        return images.load(range(start, start + n))

    def pick(self, split: str, rows: Sequence[int]) -> Batch:
        return self.open(split).load(rows)

    def count(self, split: str) -> int:
        return self._counts[split] if split in self._counts else len(self.open(split))

    def missing(self, split: str) -> str:
        try:
            self.count(split)
        except FileNotFoundError as error:  # a folder that is there but of another data set is a mistake, not a gap
            return str(error)
        return ""

    def named(self, split: str) -> str:
        if split not in FAMILIES:
            return ""
        return "setting" if getattr(self.cfg, split) else "place" * family_folder(self.cfg, split).is_dir()

    def classes(self, split: str) -> Tensor | None:
        name = split.removeprefix("val:")
        labels = family_labels(name) if name in FAMILIES else None
        return None if labels is None else torch.tensor(labels, device=self.model.device)

    def names(self) -> list[str]:
        return list(self.labels or (name.split(",")[0] for name in ImageNetInfo().label_descriptions()))

    def identity(self, split: str) -> dict[str, Any]:
        if split not in self._identities:
            told = self.open(split).identity() | _heir(self, FolderSource)
            self._identities[split] = {"kind": "folder", "split": split, **told}
        return self._identities[split]

    def _open(self, split: str) -> ImageFiles:
        cfg, model = self.cfg, self.model
        if split in _TREE:
            home, _, family = split.partition(":")
            self._check_family(family)
            labels = family_labels(family) if family else None
            how = {"seed": cfg.seed, "resize": cfg.resize, "labels": self.labels}
            return FolderImages(cfg.root, home, model, classes=labels, **how)
        name, _, part = split.partition("/")
        if name not in FAMILIES or bool(part) != (name == "c"):
            known = [*_TREE, *(f for f in FAMILIES if f != "c"), "c/<corruption>/<severity>"]
            raise ValueError(f"split must be one of {', '.join(known)}, got {split!r}")
        self._check_family(name)
        folder = family_folder(cfg, name)
        if name == "cue_conflict":
            return CueConflict(folder, model, seed=cfg.seed)
        images = open_family(name, folder, model, part=part, seed=cfg.seed)
        if name == "c":
            self._first_part = self._first_part or images
            check_same_images(images, self._first_part)
        return images

    def _check_family(self, name: str) -> None:
        if name and self.labels is not None:
            own = f"{self.model.name} has {self.model.num_classes} others"
            raise FileNotFoundError(f"{name} has classes of ImageNet-1k, {own}")


def own_classes(source: Source) -> tuple[str, ...]:
    """Names of the classes of a folder or a torch data set of one's own, in the order of their labels, if it has any;
    none of any other data set."""
    return tuple(source.labels or ()) if isinstance(source, FolderSource | DatasetSource) else ()


def _heir(source: Source, known: type) -> dict[str, str]:
    """What tells a class that inherits from a data set apart from it: its images may be others.

    That is its code, and what its objects have beside the attributes of a known one and what is private.
    """
    kind = type(source)
    if kind is known:
        return {}
    own = {name: value for name, value in given(source).items() if name[0] != "_" and name not in _TOLD}
    return {"class": f"{kind.__qualname__} {short([code_of(kind, known), own])}"}


def open_source(cfg: DataConfig, model: StagedViT) -> Source:
    """The data set of a configuration, in the pixels that the model expects.

    Raises:
        ValueError: neither `shapes` nor `folder`, folders set and yet `shapes`, a folder without a root, or a model
            that does not fit the data.
    """
    if cfg.images and cfg.kind == "folder":
        raise ValueError(f"data.images must be 0 for a folder, which holds what it holds, got {cfg.images}")
    channels, taken = model.image_shape[0], {"shapes": (3,), "folder": (1, 3)}.get(cfg.kind, ())
    if taken and channels not in taken:
        told = f"{model.name} takes images of {channels} channels, {cfg.kind} has {' or '.join(map(str, taken))}"
        raise ValueError(f"{told}: give a data set of your own, with the methods of nslib.data.source.Source")
    if cfg.kind == "shapes":
        if unread := cfg.paths():
            raise ValueError(f"the embedded shapes read no folder, and {', '.join(unread)} of data is set: set "
                             "data.kind=folder and data.root (--imagenet FOLDER)")  # fmt: skip
        return ShapesSource(cfg, model)
    if cfg.kind == "folder":
        cfg.check_root()
        return FolderSource(cfg, model)
    raise ValueError(f"data kind must be shapes or folder, got {cfg.kind!r}")
