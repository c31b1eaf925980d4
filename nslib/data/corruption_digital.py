"""Contrast, elastic transform, pixelation and JPEG."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nslib.data.corruption_blurs import gaussian_filter
from nslib.data.corruption_fields import uniform_field


def contrast(levels: Tensor, severity: int, keys: Tensor) -> Tensor:
    """Pulls each channel towards its mean."""
    share = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    rows = levels.sum(dim=3, keepdim=True)  # whole numbers: exact in float32, and then in float64
    mean = (rows.double().sum(dim=2, keepdim=True) / levels[0, 0].numel()).to(levels)
    return (levels - mean) * share + mean


def elastic_transform(levels: Tensor, severity: int, keys: Tensor) -> Tensor:
    """Reads the image at smoothly displaced points, bilinearly, borders mirrored."""
    alpha = 250 * (0.05, 0.065, 0.085, 0.1, 0.12)[severity - 1]
    height, width = levels.shape[2:]
    noise = uniform_field(keys, 2, height, width)  # displacement along x, then y
    shift = gaussian_filter(noise, (0.01 * height, 0.01 * width), truncate=3, border="symmetric")
    shift *= alpha * 0.005 * height
    x = torch.arange(width, device=levels.device) + shift[:, 0]
    y = torch.arange(height, device=levels.device).unsqueeze(1) + shift[:, 1]
    # grid_sample counts from -1 to 1 over the outer edges of the border pixels; a complex number is a pair (x, y)
    grid = torch.view_as_real(torch.complex((x * 2 + 1) / width - 1, (y * 2 + 1) / height - 1))
    return F.grid_sample(levels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def pixelate(levels: Tensor, severity: int, keys: Tensor) -> Tensor:
    """Shrinks with a box filter and enlarges by repetition, with Pillow, which rounds in between."""
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]

    def shrink_and_enlarge(image: Image.Image) -> Image.Image:
        small = int(image.width * share), int(image.height * share)
        return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)

    return _each(levels, shrink_and_enlarge)


def jpeg_compression(levels: Tensor, severity: int, keys: Tensor) -> Tensor:
    """Writes and reads a JPEG of low quality, with Pillow."""
    quality = (25, 18, 15, 10, 7)[severity - 1]

    def write_and_read(image: Image.Image) -> Image.Image:
        file = BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _each(levels, write_and_read)


def _each(levels: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """A Pillow function of every image. Threads were tried: at a third of a millisecond an image they gain nothing."""
    outputs = np.empty(levels.shape, dtype=np.uint8)
    for planes, out in zip(levels.to(torch.uint8).cpu().numpy(), outputs, strict=True):
        image = Image.merge("RGB", [Image.fromarray(plane) for plane in planes])
        out[:] = [np.asarray(plane) for plane in change(image).split()]
    return torch.from_numpy(outputs).to(levels)
