"""Images in folders as ImageNet has them, `root/<split>/<wnid>/*.JPEG`, in the pixels that a model expects."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import timm.data
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from nslib.data.shapes import Batch
from nslib.models import StagedViT

_SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp"}
_LAYOUT = "<root>/<split>/<wnid>/*.JPEG, such as val/n01440764/ILSVRC2012_val_00000293.JPEG"


def wnids() -> list[str]:
    """The 1,000 WordNet ids of ImageNet-1k in the order of a classifier's outputs (from timm)."""
    return timm.data.ImageNetInfo("imagenet-1k").label_names()


class FolderImages:
    """One split of an ImageNet-style folder; any subset of the classes and of the images will do.

    Labels are places in the order of all 1,000 wnids, also when only some of the classes are there. The images come
    in an order drawn from `seed`, so that the first n are spread over the classes.

    Args:
        model: its own configuration gives size, crop, resizing and interpolation. Pixels stay in [0, 1]: mean and
            std are applied inside the model.
    Raises:
        FileNotFoundError: the folder is missing or holds no image; names it and the layout expected.
        ValueError: a class folder is no wnid of ImageNet-1k.
    """

    def __init__(self, root: str | Path, split: str, model: StagedViT, *, seed: int = 0):
        self.folder = Path(root).expanduser() / split
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no folder {self.folder}: expected {_LAYOUT}")
        index = {wnid: label for label, wnid in enumerate(wnids())}
        classes = sorted(p for p in self.folder.iterdir() if p.is_dir())
        unknown = [p.name for p in classes if p.name not in index]
        if unknown:
            raise ValueError(f"{len(unknown)} of {len(classes)} folders in {self.folder} are no wnid of ImageNet-1k "
                             f"({', '.join(unknown[:3])}): expected {_LAYOUT}")  # fmt: skip
        files = [(f, index[c.name]) for c in classes for f in sorted(c.iterdir()) if f.suffix.lower() in _SUFFIXES]
        if not files:
            raise FileNotFoundError(f"no images in {self.folder}: expected {_LAYOUT}")
        order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed))
        self.files = [files[i] for i in order]
        self.transform = eval_transform(model)

    def __len__(self) -> int:
        return len(self.files)

    def load(self, indices: Sequence[int]) -> Batch:
        """Images (B, C, H, W) in [0, 1] and labels (B,).

        Raises:
            OSError: some images cannot be read; counts and names them, none is skipped in silence.
        """
        chosen = [self.files[i] for i in indices]
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(lambda item: self._read(item[0]), chosen))
        broken = [str(item[0]) for item, image in zip(chosen, images, strict=True) if image is None]
        if broken:
            raise OSError(f"{len(broken)} of {len(chosen)} images are unreadable or truncated: {', '.join(broken[:5])}"
                          f"{' ...' if len(broken) > 5 else ''}: fetch them again or move them away")  # fmt: skip
        return Batch(torch.stack(images), torch.tensor([label for _, label in chosen]))

    def _read(self, path: Path) -> Tensor | None:
        try:
            with Image.open(path) as image:
                return self.transform(image.convert("RGB")).float() / 255
        except (OSError, UnidentifiedImageError, SyntaxError):
            return None


def eval_transform(model: StagedViT):
    """The evaluation transform of the model's own timm configuration, PIL image -> uint8 (C, H, W), not normalised."""
    cfg = timm.data.resolve_data_config({"input_size": model.image_shape}, model=model.vit)
    keep = ("input_size", "interpolation", "crop_pct", "crop_mode")
    return timm.data.create_transform(**{k: cfg[k] for k in keep}, is_training=False, normalize=False)
