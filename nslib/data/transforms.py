"""From the pixels of a file to those that a model expects, as its own timm configuration says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import timm.data
from PIL import Image
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torchvision.transforms import Compose, Grayscale
from torchvision.transforms import functional as TF

from nslib.vit.staged import StagedViT

PUBLISHED = 224  # pixels: the side at which ImageNet-C, Stylized-ImageNet and DAmageNet are published


def eval_transform(
    model: StagedViT, *, resize: bool = True, made_for: int | None = None
) -> Callable[[Image.Image], Tensor]:
    """The evaluation transform of the model's own timm configuration, PIL image -> uint8 (C, H, W), not normalised.

    Args:
        resize: False for images that are at their final size: `CentreCrop` alone.
        made_for: side of the models for which these were made, in pixels; for another model they are scaled. None: they
            were made for this one.
    """
    cfg = timm.data.resolve_data_config({"input_size": model.image_shape}, model=model.vit)
    if resize:
        keep = ("input_size", "interpolation", "crop_pct", "crop_mode")
        coloured = timm.data.create_transform(**{k: cfg[k] for k in keep}, is_training=False, normalize=False)
    else:
        size = model.image_shape[1:]
        coloured = CentreCrop(size, cfg["interpolation"], max(size) / made_for if made_for else 1.0)
    return coloured if model.image_shape[0] == 3 else Compose([Grayscale(), coloured])


@dataclass(frozen=True)
class CentreCrop:
    """The middle of an image, PIL image -> uint8 (C, H, W), its pixels untouched where the scale is 1.

    One too small for the crop is enlarged to it, never padded.
    """

    size: tuple[int, int]  # (H, W)
    interpolation: str
    scale: float = 1.0  # of the image, before it is cropped

    def __call__(self, image: Image.Image) -> Tensor:
        width, height = image.size
        scale = max(self.scale, self.size[0] / height, self.size[1] / width)
        if scale != 1:
            scaled = [round(height * scale), round(width * scale)]
            image = TF.resize(image, scaled, str_to_interp_mode(self.interpolation))
        return TF.pil_to_tensor(TF.center_crop(image, list(self.size)))

    def __repr__(self) -> str:
        """Part of the identity of a data set, and as before where nothing is scaled."""
        scaled = "" if self.scale == 1 else f", scale={self.scale:g}"
        return f"CentreCrop(size={self.size}, interpolation={self.interpolation!r}{scaled})"


def in_words(transform: Callable) -> str:
    """A transform in one line, by which it is told from others; the size of its images is in it."""
    return " ".join(repr(transform).split())
