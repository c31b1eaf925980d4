"""Images in folders as ImageNet has them, `root/<split>/<wnid>/*.JPEG`, in the pixels that a model expects."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files as resource_files
from pathlib import Path

from nslib.data.files import ImageFiles
from nslib.data.transforms import eval_transform
from nslib.vit.staged import StagedViT

_SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"}
_KNOWN = _SUFFIXES | {".txt", ".json", ".csv", ".xml", ".md"}  # texts beside images are no news
_LAYOUT = "<root>/<split>/<wnid>/*.JPEG, such as val/n01440764/ILSVRC2012_val_00000293.JPEG"
_OWN_LAYOUT = "<root>/<split>/<class>/*.JPEG, the same classes in train and val"
_SUBSETS = {
    "imagenet-1k": "imagenet_synsets.txt",
    "imagenet-a": "imagenet_a_synsets.txt",
    "imagenet-r": "imagenet_r_synsets.txt",
}


@lru_cache
def wnids(subset: str = "imagenet-1k") -> tuple[str, ...]:
    """WordNet ids in the order of a classifier's outputs, from timm: 1,000 of `imagenet-1k`, 200 of `imagenet-a`, `-r`.

    Raises:
        ValueError: another subset.
    """
    if subset not in _SUBSETS:
        raise ValueError(f"subset must be one of {', '.join(_SUBSETS)}, got {subset!r}")
    return tuple((resource_files("timm.data") / "_info" / _SUBSETS[subset]).read_text(encoding="utf-8").split())


class FolderImages(ImageFiles):
    """One split of an ImageNet-style folder; any subset of the classes and of the images will do.

    Args:
        model: its own configuration gives size, crop, resizing and interpolation. Pixels stay in [0, 1]: mean and
            std are applied inside the model.
        resize: False for images that were resized before: they are cropped at the centre alone.
        classes: labels to keep, None for all.
        labels: of each name that a class folder may have; None: wnids, by their place among all 1,000, also when only
            some of the classes are there.
    Raises:
        FileNotFoundError: the folder is missing or holds no image; names it and the layout expected.
        ValueError: a class folder has another name.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        model: StagedViT,
        *,
        seed: int = 0,
        resize: bool = True,
        classes: Collection[int] | None = None,
        labels: Mapping[str, int] | None = None,
    ):
        folder = Path(root).expanduser() / split
        kind, layout = ("wnid of ImageNet-1k", _LAYOUT) if labels is None else ("class of the model", _OWN_LAYOUT)
        named = label_of() if labels is None else labels
        files = class_files(folder, named, kind=kind, layout=layout, own=labels is None)
        if classes is not None:
            kept = set(classes)
            files = [(path, label) for path, label in files if label in kept]
            layout = f"some of the {len(classes)} classes asked for as {layout}"
        super().__init__(folder, files, eval_transform(model, resize=resize), layout=layout, seed=seed)


def label_of(subset: str = "imagenet-1k") -> dict[str, int]:
    """Each wnid of a subset with its place among all 1,000."""
    place = {wnid: label for label, wnid in enumerate(wnids())}
    return {wnid: place[wnid] for wnid in wnids(subset)}


def own_labels(root: str | Path, num_classes: int, known: Sequence[str] = ()) -> dict[str, int]:
    """The class folders of train, or of val where there is no train, each with its place by name.

    They are the classes of a model that has not those of ImageNet, as in torchvision.datasets.ImageFolder.

    Args:
        known: names of the classes that the head was trained for, where it knows them: these are then the labels, and
            the folder may have any of them.
    Raises:
        FileNotFoundError: there are none.
        ValueError: they are not as many as the classes of the model's head, or others.
    Warns:
        UserWarning: they are 1,000, and may be taken for ImageNet's.
    """
    folder, classes = _class_folders(root)
    if not classes:
        raise FileNotFoundError(f"no classes in {folder}: expected {_OWN_LAYOUT}")
    if known:
        others = [path.name for path in classes if path.name not in known]
        if others:
            raise ValueError(
                f"{folder} has {len(others)} classes ({', '.join(others[:3])}) that are none of those the model was "
                f"finetuned for ({', '.join(known[:3])}, ...): name the folders so, or give it other classes by "
                f"nslib.models.reset_head (nslib finetune --num-classes {len(classes)})"
            )
        return {name: label for label, name in enumerate(known)}
    if len(classes) != num_classes:
        raise ValueError(
            f"{folder} holds {len(classes)} classes and the head of the model has {num_classes}: make the model with "
            f"num_classes={len(classes)} (nslib finetune --num-classes {len(classes)}), or take one with the head of "
            "ImageNet-1k"
        )
    if num_classes == len(wnids()):
        names = ", ".join(path.name for path in classes[:3])
        warnings.warn(f"the 1,000 folders in {folder} are no wnids: labels are their places by name ({names}, ...), "
                      "not those of ImageNet", stacklevel=3)  # fmt: skip
    return {path.name: label for label, path in enumerate(classes)}


def of_imagenet(root: str | Path, num_classes: int) -> bool:
    """Whether labels are those of ImageNet: with its 1,000 classes, save for 1,000 folders of other names."""
    if num_classes != len(wnids()):
        return False
    names = [path.name for path in _class_folders(root)[1]]
    return len(names) != num_classes or not label_of().keys().isdisjoint(names)


def _class_folders(root: str | Path) -> tuple[Path, list[Path]]:
    """Train, or val where there is no train, and the class folders in it."""
    root = Path(root).expanduser()
    folder = next((f for f in (root / "train", root / "val") if f.is_dir()), None)
    return (folder, subfolders(folder)) if folder else (root, [])


def class_files(
    folder: Path, labels: Mapping[str, int], *, kind: str, layout: str, own: bool = False
) -> list[tuple[Path, int]]:
    """The images of `folder/<class>/` with their labels.

    Args:
        labels: of each name that a class folder may have.
        kind: what such a name is, for errors.
        own: whether other names may be classes of the user's own, for whose use errors then give the option.
    Raises:
        FileNotFoundError: no such folder.
        ValueError: a class folder has none of these names.
    Warns:
        UserWarning: some class folders hold no image, or what is neither an image nor text.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: expected {layout}")
    classes = subfolders(folder)
    unknown = [p.name for p in classes if p.name not in labels]
    if unknown:
        own = own and len(classes) != len(wnids())  # so many of one's own are taken, where none is a wnid
        remedy = f", or, for classes of your own, nslib finetune --num-classes {len(classes)}" if own else ""
        raise ValueError(f"{len(unknown)} of {len(classes)} folders in {folder} are no {kind} "
                         f"({', '.join(unknown[:3])}): expected {layout}{remedy}")  # fmt: skip
    entries = {c.name: _entries(c) for c in classes}
    files = {name: _images(folder / name, found) for name, found in entries.items()}
    passed = [e.path for found in entries.values() for e in found if _suffix(e) not in _KNOWN or e.is_dir()]
    if passed:
        warnings.warn(f"{len(passed)} entries of class folders in {folder} are passed over, such as {passed[0]}: only "
                      f"files {', '.join(sorted(_SUFFIXES))} in a class folder are read", stacklevel=2)  # fmt: skip
    empty = [name for name, found in files.items() if not found]
    if 0 < len(empty) < len(files):
        warnings.warn(f"{len(empty)} of {len(classes)} class folders in {folder} hold no image "
                      f"{', '.join(sorted(_SUFFIXES))} ({', '.join(empty[:3])})", stacklevel=2)  # fmt: skip
    return [(f, labels[name]) for name, found in files.items() for f in found]


def subfolders(folder: Path) -> list[Path]:
    """The folders that lie in a folder, by name, without hidden ones such as .ipynb_checkpoints.

    Raises:
        OSError: as `_entries`.
    """
    return sorted(folder / entry.name for entry in _entries(folder) if entry.is_dir())


def image_files(folder: Path) -> list[Path]:
    """The images that lie in a folder itself, by name, without hidden files such as ._image.JPEG.

    Raises:
        OSError: as `_entries`.
    """
    return _images(folder, _entries(folder))


def _images(folder: Path, entries: Sequence[os.DirEntry]) -> list[Path]:
    return sorted(folder / entry.name for entry in entries if _suffix(entry) in _SUFFIXES and not entry.is_dir())


def _suffix(entry: os.DirEntry) -> str:
    return os.path.splitext(entry.name)[1].lower()


def _entries(folder: Path) -> list[os.DirEntry]:
    """What lies in a folder and is not hidden.

    Raises:
        OSError: links lead nowhere; counts and names them, none is skipped in silence.
    """
    with os.scandir(folder) as found:
        entries = [e for e in found if not e.name.startswith(".")]
    lost = sorted(e.name for e in entries if e.is_symlink() and not os.path.exists(e.path))
    if lost:
        raise OSError(f"{len(lost)} links in {folder} lead nowhere ({', '.join(lost[:3])}): mend or remove them")
    return entries
