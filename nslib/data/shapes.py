"""The embedded data set: ten shapes with a texture bias, rendered on any device, at any size, from a seed.

Image i is a function of (seed, split, i) alone: each number is a hash (`hashing`), and pixels come from elementwise
operations that are exact under IEEE rules, so batch, order, worker and process change no byte. Every column of the
paper's Table 2 that is a shift of distribution has a counterpart here as a `Recipe`:

    v2        the same classes drawn again by a slightly shifted generator
    a         small, off-centre and cluttered
    r         other renditions in low contrast: flat colour, posterised, pixel art
    sketch    outlines on white, smaller and less centred
    stylized  the texture always belongs to another class, and stands out more than the shape
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nslib.data.geometry import CLASSES, SHAPES, by_kind, cos_turns, length, sin_turns
from nslib.data.hashing import Draws, key, uniform
from nslib.data.textures import TEXTURES

VERSION = 2  # part of every cached result that depends on these pixels: raise it when they change
_CHUNK_PIXELS = 64 * 48 * 48  # work set of one pass: small enough for a CPU's cache
_CHUNK_PIXELS_GPU = 256 * 224 * 224  # the numbers of an image take as many kernels as its pixels, of whatever size


@dataclass(frozen=True)
class Recipe:
    """How a split draws its images. Lengths are shares of half the image side."""

    radius: tuple[float, float] = (0.40, 0.66)
    offset: float = 0.22
    stretch: float = 0.15  # the two axes are scaled by 1 +- stretch
    contrast: tuple[float, float] = (0.22, 0.45)  # difference of mean brightness, object to background
    agree: float = 0.5  # share of images whose texture is forced to the class's own; the others draw any
    clutter: int = 1  # distracting blobs
    contour: float = 0.3  # share of images whose object has a drawn edge, over a fill that may fade away
    noise: float = 0.08  # largest amplitude of the pixel noise
    renditions: bool = False
    outline: bool = False


SPLITS: dict[str, Recipe] = {
    "train": Recipe(),
    "val": Recipe(),
    "v2": Recipe(radius=(0.37, 0.62), offset=0.26, stretch=0.20, contrast=(0.18, 0.40), noise=0.11),
    "a": Recipe(radius=(0.33, 0.46), offset=0.34, contrast=(0.18, 0.40), clutter=5),
    "r": Recipe(contrast=(0.08, 0.28), renditions=True),
    "sketch": Recipe(radius=(0.36, 0.60), offset=0.28, outline=True),
    "stylized": Recipe(contrast=(0.06, 0.26), agree=-1.0),
}
_SPLIT_ID = {name: i for i, name in enumerate(SPLITS)}


class Batch(NamedTuple):
    """Images (B, 3, H, W) float32 in [0, 1] on the 8-bit grid, and labels (B,) int64."""

    images: Tensor
    labels: Tensor


def render(split: str, indices, *, seed: int = 0, size: int = 48, device: str | torch.device = "cpu") -> Batch:
    """Draw images by their index.

    Args:
        split: one of `SPLITS`; `train` has no end.
        indices: integers >= 0, any sequence or int64 tensor (B,).
        size: image side in pixels, at least 16.
    Raises:
        ValueError: unknown split, negative index, or size below 16.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if size < 16:
        raise ValueError(f"size must be at least 16 px for the shapes to be told apart, got {size}")
    indices = torch.as_tensor(indices, dtype=torch.int64, device=device).reshape(-1)
    if len(indices) and int(indices.min()) < 0:
        raise ValueError(f"indices must be >= 0, got {int(indices.min())}")
    budget = _CHUNK_PIXELS if indices.device.type == "cpu" else _CHUNK_PIXELS_GPU
    chunks = indices.split(max(1, budget // size**2))
    parts = [_render_chunk(split, chunk, seed, size) for chunk in chunks]
    return Batch(*(torch.cat(p) for p in zip(*parts, strict=True)))


def _render_chunk(split: str, indices: Tensor, seed: int, size: int) -> Batch:
    recipe = SPLITS[split]
    keys = key(seed, _SPLIT_ID[split], indices)
    draw = Draws(keys)
    labels = draw.integer("label", len(CLASSES))
    style = draw.integer("style", 3) if recipe.renditions else torch.full_like(labels, -1)

    x, y = _grid(size, style)
    cx, cy = (_wide(draw(name, -recipe.offset, recipe.offset)) for name in ("cx", "cy"))
    radius = draw("radius", *recipe.radius)
    distance = _object_distance(draw, recipe, labels, x - cx, y - cy, radius)  # in half-sides
    pixels = distance * (size / 2)

    if recipe.outline:
        ink = _wide(draw("ink", 0.0, 0.3))
        image = (1 + (ink - 1) * _stroke(draw, pixels)).unsqueeze(1).repeat(1, 3, 1, 1)
    else:
        image = _paint(draw, recipe, labels, style, x, y, pixels)
        levels = torch.floor(image * 3.999) / 3
        image = torch.where(_wide(style == 1, 4), levels, image)

    image = image + _pixel_noise(keys, size).unsqueeze(1) * _wide(draw("noise", 0.0, recipe.noise), 4)
    return Batch(torch.floor(image.clamp(0, 1) * 255 + 0.5) / 255, labels)


def _stroke(draw: Draws, pixels: Tensor) -> Tensor:
    """A line along the object's edge, (B, S, S): 1 on it, 0 off it. Its width grows with the image."""
    half_width = _wide(draw("stroke", 0.4, 1.0)) * (pixels.shape[-1] / 48)
    return (half_width + 0.5 - pixels.abs()).clamp(0, 1)


def _wide(t: Tensor, dims: int = 3) -> Tensor:
    """(B,) -> (B, 1, 1, ...) with `dims` dimensions."""
    return t.reshape(-1, *[1] * (dims - 1))


def _grid(size: int, style: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel centres (B, S, S) in [-1, 1]; pixel art (style 2) reads them at the centres of a 16 x 16 raster."""
    line = torch.arange(size, device=style.device, dtype=torch.float32)
    fine = (line * 2 + 1) / size - 1
    coarse = (torch.floor(line * 16 / size) * 2 + 1) / 16 - 1
    lines = torch.where((style == 2).unsqueeze(1), coarse, fine)  # (B, S)
    shape = (len(style), size, size)
    return lines.unsqueeze(1).expand(shape), lines.unsqueeze(2).expand(shape)


def _rotate(x: Tensor, y: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
    c, s = _wide(cos_turns(turns)), _wide(sin_turns(turns))
    return x * c + y * s, y * c - x * s


def _object_distance(draw: Draws, recipe: Recipe, labels: Tensor, dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
    """Signed distance (B, S, S) to the object's edge, in half-sides of the image; negative inside."""
    x, y = _rotate(dx, dy, draw("turn"))
    stretch = draw("stretch", -recipe.stretch, recipe.stretch)
    x = x / _wide(radius * (1 + stretch))
    y = y / _wide(radius * (1 - stretch))
    return by_kind(labels, SHAPES, x, y) * _wide(radius)


def _texture(draw: Draws, name: str, kind: Tensor, x: Tensor, y: Tensor, scale: tuple[float, float]) -> Tensor:
    """Texture values (B, S, S) of each image's kind, at a random angle, phase and `scale` cells a half-side."""
    u, v = _rotate(x, y, draw(name + "turn"))
    frequency = _wide(draw(name + "freq", *scale))
    u = u * frequency + _wide(draw(name + "u", 0, 64))
    v = v * frequency + _wide(draw(name + "v", 0, 64))
    return by_kind(kind, TEXTURES, u, v)


def _colour(draw: Draws, name: str, brightness: Tensor, chroma: float) -> Tensor:
    """(B, 3, 1, 1): the brightness plus a random tint."""
    tint = torch.stack([draw(f"{name}{c}", -chroma, chroma) for c in "rgb"], 1)
    return _wide(brightness, 4) + tint.unsqueeze(2).unsqueeze(3)


def _paint(draw: Draws, recipe: Recipe, labels: Tensor, style: Tensor, x: Tensor, y: Tensor, pixels: Tensor) -> Tensor:
    """Textured object over textured background, (B, 3, S, S); pixels (B, S, S) is the distance to its edge."""
    kinds = len(TEXTURES)
    other = (labels + 1 + draw.integer("other", kinds - 1)) % kinds  # any texture but the class's own
    drawn = draw.integer("any", kinds)
    agrees = draw("agree") < recipe.agree
    texture = torch.where(agrees, labels, other if recipe.agree < 0 else drawn)
    flat = style >= 0
    texture = torch.where(flat, 0, texture)
    ground = torch.where(flat, 0, draw.integer("ground", kinds))

    back = draw("back", 0.15, 0.85)
    step = draw("step", *recipe.contrast)
    front = torch.where(back < 0.5, back + step, back - step)
    swing = draw("swing", 0.15, 0.35) * torch.where(draw("way") < 0.5, 1.0, -1.0)

    t = _texture(draw, "f", texture, x, y, (3.5, 5.5)).unsqueeze(1)
    object_ = _colour(draw, "p", front - swing * 0.5, 0.15) + t * (_colour(draw, "q", swing, 0.10))
    t = _texture(draw, "b", ground, x, y, (2.0, 6.0)).unsqueeze(1)
    scene = _colour(draw, "s", back, 0.15) + (t - 0.5) * _wide(draw("depth", 0.0, 0.22), 4)

    for blob in range(recipe.clutter):
        n = str(blob)
        r = _wide(draw(n + "radius", 0.06, 0.16))
        gap = length(x - _wide(draw(n + "x", -0.9, 0.9)), y - _wide(draw(n + "y", -0.9, 0.9))) - r
        cover = (0.5 - gap * (x.shape[-1] / 2)).clamp(0, 1).unsqueeze(1)
        scene = scene + (_colour(draw, n, draw(n + "l", 0.1, 0.9), 0.2) - scene) * cover
    drawn_edge = draw("contour") < recipe.contour
    opacity = torch.where(drawn_edge, draw("fade"), 1.0)
    image = scene + (object_ - scene) * ((0.5 - pixels).clamp(0, 1) * _wide(opacity)).unsqueeze(1)
    edge = _stroke(draw, pixels) * _wide(drawn_edge)
    image = image + (_colour(draw, "e", torch.where(back < 0.5, 0.9, 0.1), 0.1) - image) * edge.unsqueeze(1)
    tilt = draw("tilt", 0.0, 0.2)
    lx, _ly = _rotate(x, y, draw("light"))
    return image * (lx * _wide(tilt) + 1).unsqueeze(1)


def _pixel_noise(keys: Tensor, size: int) -> Tensor:
    """Triangular noise (B, S, S) in (-1, 1): two uniform numbers from one hash a pixel."""
    cells = torch.arange(size * size, device=keys.device).reshape(1, size, size)
    h = key(_wide(keys), cells)
    second = (h & 0xFFFFFF).to(torch.float32) / float(1 << 24)
    return uniform(h) - second
