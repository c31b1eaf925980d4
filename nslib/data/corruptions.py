"""The 15 corruptions of ImageNet-C at five severities, for a batch of images from any source, on the images' device.

    corrupted = corrupt(images, "fog", 3, indices=range(128))

What is random in an image is hashed from (seed, index, corruption, severity) alone (`hashing`), so batch, order, worker
and number of threads change no byte. Reference is the library imagecorruptions-imaug 1.1.5: formulas, parameters and
the quirks that made the published data set are its own, the way to compute them is not (`corruption_noise`,
`corruption_blurs`, `corruption_weather`, `corruption_digital`).

    within one 8-bit level of it     defocus_blur, zoom_blur, brightness, contrast, pixelate, jpeg_compression
    within one, given the same draws motion_blur, glass_blur, frost, fog, elastic_transform; snow within two
    the same distribution, exactly   gaussian_noise, shot_noise, impulse_noise

ImageNet-C is 224 px. At any other size the parameters in pixels (radii, kernels) stay as they are, in the library and
here, so the same severity is harder on a smaller image: call that ImageNet-C style, not ImageNet-C.

Source: Hendrycks and Dietterich, arXiv:1903.12261; Michaelis et al., arXiv:1907.07484.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches

import torch
from torch import Tensor

from nslib.data.corruption_blurs import SLACK, defocus_blur, glass_blur, motion_blur, zoom_blur
from nslib.data.corruption_digital import contrast, elastic_transform, jpeg_compression, pixelate
from nslib.data.corruption_noise import gaussian_noise, impulse_noise, shot_noise
from nslib.data.corruption_weather import brightness, fog, frost, snow
from nslib.data.hashing import key

VERSION = 1  # part of every cached result that depends on these pixels: raise it when they change
SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 32  # pixels, as in the library

_CORRUPTIONS: dict[str, Callable[[Tensor, int, Tensor], Tensor]] = {
    function.__name__: function
    for function in (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        defocus_blur,
        glass_blur,
        motion_blur,
        zoom_blur,
        snow,
        frost,
        fog,
        brightness,
        contrast,
        elastic_transform,
        pixelate,
        jpeg_compression,
    )
}
CORRUPTIONS: tuple[str, ...] = tuple(_CORRUPTIONS)

_CHUNK_PIXELS = 10 * 224 * 224  # 30 channels: nearly two vectors of 16 where channels are the fast axis, and in cache
_CHUNK_PIXELS_GPU = 64 * 224 * 224


@torch.no_grad()
def corrupt(images: Tensor, name: str, severity: int, *, indices: Sequence[int] | Tensor, seed: int = 0) -> Tensor:
    """Corrupt a batch of images.

    Args:
        images: (B, 3, H, W) in [0, 1] on the 8-bit grid (other values are rounded to it), H and W at least 32 px.
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        indices: (B,) the number of each image in its data set.
    Returns:
        (B, 3, H, W) float32 in [0, 1] on the 8-bit grid.
    Raises:
        ValueError: unknown name or severity, images of another shape, type, size or range, indices of another length.
        ModuleNotFoundError: frost without imagecorruptions-imaug, whose pictures it lays over the images.
    """
    check_corruption(name)
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise ValueError(f"severity must be one of 1, 2, 3, 4, 5, got {severity!r}: 0 would be the clean image")
    _check_images(images)
    indices = torch.as_tensor(indices, dtype=torch.int64, device=images.device)
    if indices.shape != images.shape[:1]:
        raise ValueError(
            f"indices must be ({len(images)},), one an image, got {tuple(indices.shape)}: pass the images' numbers"
        )
    if not len(images):
        return images.float()

    keys = key(seed, CORRUPTIONS.index(name), severity, indices)
    budget = _CHUNK_PIXELS if images.device.type == "cpu" else _CHUNK_PIXELS_GPU
    size = max(1, budget // images[0, 0].numel())
    corrupted = torch.empty(images.shape, device=images.device)
    for chunk, chunk_keys, out in zip(*(t.split(size) for t in (images, keys, corrupted)), strict=True):
        levels = chunk.float().mul(255).round_().contiguous()
        levels = _CORRUPTIONS[name](levels, int(severity), chunk_keys)
        torch.div(levels.add(SLACK).floor_().clamp_(0, 255), 255, out=out)
    return corrupted


def check_corruption(name: str, where: str = "") -> None:
    """Refuse what is none of `CORRUPTIONS`.

    Raises:
        ValueError: tells the nearest names.
    """
    if name not in CORRUPTIONS:
        near = get_close_matches(str(name), CORRUPTIONS, n=3) or CORRUPTIONS
        raise ValueError(f"no corruption {name!r}{where}: did you mean {' or '.join(near)}?")


def _check_images(images: Tensor) -> None:
    shape = tuple(images.shape)
    if images.ndim != 4 or shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W), got {shape}: add the batch dimension, channels before pixels")
    if not images.is_floating_point():
        raise ValueError(f"images must be floats in [0, 1], got {images.dtype}: divide by 255")
    if min(shape[2:]) < SMALLEST:
        raise ValueError(
            f"images must be at least {SMALLEST} px a side, got {shape[2]} x {shape[3]}: enlarge them first"
        )
    if len(images):
        low, high = images.amin(), images.amax()
        if not (low >= 0 and high <= 1):  # so written, it also refuses NaN
            span = f"[{low:.3g}, {high:.3g}]"
            raise ValueError(f"images must lie in [0, 1], got {span}: pass raw pixels / 255, models normalise inside")
