"""Snow, frost, fog and brightness: layers over the image."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from nslib.data.corruption_blurs import smear
from nslib.data.corruption_fields import normal_field, uniform_field
from nslib.data.hashing import Draws, key
from nslib.runtime import packaged

_FROST = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg", "frost6.jpg")


def snow(levels: Tensor, severity: int, keys: Tensor) -> Tensor:
    """Flakes, falling: enlarged noise above a threshold, smeared downwards, laid over a paler image twice."""
    mean, std, zoom, threshold, radius, sigma, keep = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity - 1]
    height, width = levels.shape[2:]
    # The library draws the whole image and enlarges the centre; the rest of its draws is never seen.
    crop = [math.ceil(side / zoom) for side in (height, width)]
    noise = normal_field(keys, 1, *crop) * std + mean
    size = [round(side * zoom) for side in crop]
    flakes = F.interpolate(noise, size=size, mode="bilinear", align_corners=True)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp_(0, 1).mul_(255)
    angles = Draws(keys)("angle", -135.0, -45.0).tolist()
    fallen = torch.stack([smear(f, radius, sigma, angle) for f, angle in zip(flakes, angles, strict=True)])
    layer = fallen.round_()[..., :height, :width]

    red, green, blue = levels.unbind(1)
    grey = (red * 0.299 + green * 0.587 + blue * 0.114).unsqueeze(1)
    pale = torch.maximum(levels, grey * 1.5 + 127.5)
    return pale.mul_(1 - keep).add_(levels, alpha=keep).add_(layer + layer.flip(2, 3))


def frost(levels: Tensor, severity: int, keys: Tensor) -> Tensor:
    """One of six photographs of frost, cropped at random, added to a darker image.

    Raises:
        ModuleNotFoundError: imagecorruptions-imaug, which ships the photographs, is not installed.
    """
    keep, opacity = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    height, width = levels.shape[2:]
    draw = Draws(keys)
    numbers, tops, lefts = draw.integer("picture", len(_FROST)), draw("top"), draw("left")
    crops = []
    for number, top, left in zip(numbers.tolist(), tops.tolist(), lefts.tolist(), strict=True):
        picture = frost_picture(number, height, width)
        top, left = int(top * (picture.shape[1] - height)), int(left * (picture.shape[2] - width))
        crops.append(picture[:, top : top + height, left : left + width])
    return levels * keep + torch.stack(crops).to(levels) * opacity


def fog(levels: Tensor, severity: int, keys: Tensor) -> Tensor:
    """Adds a plasma fractal and scales back to the image's own maximum."""
    strength, decay = ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[severity - 1]
    height, width = levels.shape[2:]
    side = 1 << (max(height, width) - 1).bit_length()
    plasma = plasma_fractal(keys, side, decay)[:, None, :height, :width]
    brightest = levels.amax(dim=(1, 2, 3), keepdim=True)
    return (levels + plasma * (strength * 255)) * (brightest / (brightest + strength * 255))


def brightness(levels: Tensor, severity: int, keys: Tensor) -> Tensor:
    """Raises the V of HSV. With hue and saturation held, that multiplies R, G and B by the same number."""
    change = 255 * (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    value = levels.amax(dim=1, keepdim=True)
    raised = (value + change).clamp_(max=255)
    return torch.where(value > 0, levels * (raised / value.clamp(min=1)), raised)  # black has no hue: it turns grey


def plasma_fractal(keys: Tensor, side: int, decay: float) -> Tensor:
    """Height maps (B, side, side) from 0 to 1 by diamonds and squares, periodic; `side` is a power of two.

    Each round doubles the grid: a new point is the mean of its four neighbours plus noise uniform in -w^2 .. w^2, where
    w is 100 at first and falls by `decay` a round. Small decays leave fine grain.
    """
    heights, wobble = torch.zeros(len(keys), 1, 1, device=keys.device), 100.0

    def near(neighbours: Tensor, stream: int) -> Tensor:
        noise = uniform_field(key(keys, len(neighbours[0]), stream), *neighbours.shape[1:])
        return (neighbours * 0.25).add_(noise, alpha=wobble**2)

    while len(heights[0]) < side:
        pairs = heights + heights.roll(-1, 1)
        centres = near(pairs + pairs.roll(-1, 2), 0)
        finer = heights.new_empty(len(keys), *(2 * n for n in heights.shape[1:]))
        finer[:, ::2, ::2], finer[:, 1::2, 1::2] = heights, centres
        finer[:, ::2, 1::2] = near(centres + centres.roll(1, 1) + (heights + heights.roll(-1, 2)), 1)
        finer[:, 1::2, ::2] = near(centres + centres.roll(1, 2) + pairs, 2)
        heights, wobble = finer, wobble / decay

    heights -= heights.amin(dim=(1, 2), keepdim=True)
    return heights / heights.amax(dim=(1, 2), keepdim=True)


@lru_cache(maxsize=2 * len(_FROST))
def frost_picture(number: int, height: int, width: int) -> Tensor:
    """A photograph of frost (3, h, w) in levels, enlarged by 1.1, and more where the image would not fit into it."""
    with Image.open(packaged("imagecorruptions", "attacks", "frost", _FROST[number])) as image:
        picture = pil_to_tensor(image.convert("RGB"))
    scale = max(1.0, height / picture.shape[1], width / picture.shape[2]) * 1.1
    size = [math.ceil(side * scale) for side in picture.shape[1:]]
    enlarged = F.interpolate(picture.unsqueeze(0).float(), size=size, mode="bicubic", align_corners=False)
    return enlarged.squeeze(0).round_().clamp_(0, 255)
