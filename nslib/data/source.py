"""One way to ask for images, whether they are rendered or read from a folder."""

from __future__ import annotations

from typing import Protocol

import torch

from nslib.config import DataConfig
from nslib.data.folders import FolderImages
from nslib.data.shapes import Batch, render
from nslib.models import StagedViT


class Source(Protocol):
    """A data set for one model."""

    def take(self, split: str, n: int, *, start: int = 0) -> Batch:
        """Images start ... start + n of a split, (n, C, H, W) in [0, 1] with labels (n,)."""
        ...


class ShapesSource:
    """The embedded data set at the model's image size, rendered on the model's device."""

    def __init__(self, cfg: DataConfig, model: StagedViT):
        _, height, width = model.image_shape
        if height != width:
            raise ValueError(
                f"shapes are square, {model.name} takes {height} x {width}: make it with img_size=({height}, {height})"
            )
        self.size, self.seed, self.device = height, cfg.seed, model.device

    def take(self, split: str, n: int, *, start: int = 0) -> Batch:
        indices = torch.arange(start, start + n)
        return render(split, indices, seed=self.seed, size=self.size, device=self.device)


class FolderSource:
    """An ImageNet-style folder."""

    def __init__(self, cfg: DataConfig, model: StagedViT):
        self.cfg, self.model = cfg, model
        self._splits: dict[str, FolderImages] = {}

    def take(self, split: str, n: int, *, start: int = 0) -> Batch:
        if split not in self._splits:
            self._splits[split] = FolderImages(self.cfg.root, split, self.model, seed=self.cfg.seed)
        images = self._splits[split]
        if start + n > len(images):
            raise ValueError(
                f"{images.folder} holds {len(images)} images, asked for {start} to {start + n}: ask for fewer"
            )
        return images.load(range(start, start + n))


def open_source(cfg: DataConfig, model: StagedViT) -> Source:
    """The data set of a configuration, in the pixels that the model expects.

    Raises:
        ValueError: neither `shapes` nor `folder`, or a folder without a root.
    """
    if cfg.kind == "shapes":
        return ShapesSource(cfg, model)
    if cfg.kind == "folder":
        if not cfg.root:
            raise ValueError("no ImageNet folder: pass --imagenet FOLDER or set NSLIB_IMAGENET")
        return FolderSource(cfg, model)
    raise ValueError(f"data kind must be shapes or folder, got {cfg.kind!r}")
