"""Images with the shape of one class and the texture of another: what does a model go by?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nslib.data.families import FAMILIES, expected
from nslib.data.files import ImageFiles
from nslib.data.folders import image_files, subfolders
from nslib.data.transforms import PUBLISHED, eval_transform
from nslib.vit.staged import StagedViT

COARSE = ("airplane", "bear", "bicycle", "bird", "boat", "bottle", "car", "cat", "chair", "clock", "dog", "elephant",
          "keyboard", "knife", "oven", "truck")  # fmt: skip


class CueConflict(ImageFiles):
    """The cue-conflict images, labelled shape * 16 + texture by places in `COARSE`.

    An image whose shape and texture are of one class holds no conflict and is left out; `left_out` counts them.

    Args:
        folder: `<shape>/<shape><i>-<texture><j>.png`, any subset of it, and `classes.json`, which names the labels of
            ImageNet-1k that each coarse class consists of.
    Raises:
        FileNotFoundError: the folder or its classes.json is missing, or there are no images.
        ValueError: classes.json does not fit the 16 classes or the model, or a name does not tell shape and texture.
    Source: Geirhos et al., arXiv:1811.12231.
    """

    def __init__(self, folder: str | Path, model: StagedViT, *, seed: int = 0):
        folder, layout = Path(folder).expanduser(), expected("cue_conflict")
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}: expected {layout}")
        self.members = _members(folder / "classes.json", model)
        cues = [(f, _cues(f)) for home in subfolders(folder) for f in image_files(home)]
        files = [(f, shape * len(COARSE) + texture) for f, (shape, texture) in cues if shape != texture]
        self.left_out = len(cues) - len(files)
        transform = eval_transform(model, resize=FAMILIES["cue_conflict"].resize, made_for=PUBLISHED)
        super().__init__(folder, files, transform, layout=layout, seed=seed)

    def decide(self, logits: Tensor) -> Tensor:
        """(B, 1000) logits -> (B,) places in `COARSE`: the class of largest mean probability over its labels."""
        probabilities = logits.softmax(1)
        return torch.stack([probabilities[:, labels].mean(1) for labels in self.members], 1).argmax(1)

    def follows(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each decision is the image's shape, and whether it is its texture, two (B,) bool; never both."""
        decided, labels = self.decide(logits), labels.to(logits.device)
        return decided == labels // len(COARSE), decided == labels % len(COARSE)

    def identity(self) -> dict[str, Any]:
        """As for all image files, and the labels of the coarse classes."""
        return super().identity() | {"classes": self.members}


def _members(table: Path, model: StagedViT) -> list[list[int]]:
    """Labels of ImageNet-1k in each coarse class."""
    if not table.is_file():
        raise FileNotFoundError(f"no {table}: it gives the labels of each of {', '.join(COARSE)} as lists of numbers")
    try:
        members = json.loads(table.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{table} is no JSON ({error}): it gives each coarse class a list of labels") from error
    if not isinstance(members, dict) or set(members) != set(COARSE):
        wrong = sorted(set(COARSE) ^ set(members)) if isinstance(members, dict) else [type(members).__name__]
        raise ValueError(f"{table} must name the 16 classes {', '.join(COARSE)}; differing: {', '.join(wrong)}")
    for name, labels in members.items():
        whole = isinstance(labels, list) and labels and all(type(label) is int for label in labels)
        if not whole or not 0 <= min(labels) <= max(labels) < model.num_classes:
            raise ValueError(
                f"{name} in {table} must be a list of labels below {model.num_classes}, the classes of {model.name}, "
                f"got {str(labels)[:60]}"
            )
    return [members[name] for name in COARSE]


def _cues(path: Path) -> tuple[int, int]:
    """Shape and texture of an image, as places in `COARSE`."""
    shape, texture = (part.rstrip("0123456789") for part in (path.stem.partition("-")[::2]))
    if shape != path.parent.name or shape not in COARSE or texture not in COARSE:
        raise ValueError(f"{path} must lie in the folder of its shape and name two of 16 classes, such as "
                         f"cat/cat7-elephant1.png, got {shape!r} and {texture!r}")  # fmt: skip
    return COARSE.index(shape), COARSE.index(texture)
