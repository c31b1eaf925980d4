"""Pictures as files: 8-bit RGB in, 8-bit RGB out, with nothing lost or made up on the way."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from nslib.runtime import atomic_path

_LEVELS = 255
_PNG = b"\x89PNG\r\n\x1a\n"
_KINDS = {"L": "greyscale", "1": "black and white", "P": "a palette", "RGBA": "an alpha channel",
          "LA": "greyscale with an alpha channel", "PA": "an alpha channel", "RGBa": "an alpha channel"}  # fmt: skip


def read_picture(path: str | Path) -> Tensor:
    """An 8-bit RGB picture, (3, H, W) in [0, 1], upright where its file says how it was turned.

    Raises:
        FileNotFoundError: no such file.
        OSError: it cannot be read as a picture, or is truncated.
        ValueError: it is animated, has 16 bits a channel, an alpha channel, or is greyscale: what to do with these is
            the user's choice.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no picture at {path}")
    try:
        with Image.open(path) as image:
            _check_kind(image, path)
            pixels = np.array(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError) as error:
        raise OSError(f"{path} cannot be read as a picture ({error}): save it again as PNG") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / _LEVELS


def write_picture(path: str | Path, image: Tensor) -> Path:
    """Save (3, H, W) in [0, 1] as 8-bit PNG, atomically, rounded to the nearest level.

    Raises:
        ValueError: another suffix than .png, which alone keeps every pixel, or values outside [0, 1].
    """
    path = Path(path).expanduser()
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path} must end in .png: JPEG would change the pixels that hold the nullspace noise")
    with atomic_path(path) as partial:
        _picture(image).save(partial, format="PNG")
    return path


def as_jpeg(image: Tensor, *, quality: int = 95) -> Tensor:
    """What is left of (3, H, W) in [0, 1] after JPEG, in memory."""
    buffer = io.BytesIO()
    _picture(image).save(buffer, format="JPEG", quality=quality)
    with Image.open(buffer) as jpeg:
        return torch.from_numpy(np.array(jpeg)).permute(2, 0, 1).float() / _LEVELS


def eight_bit(images: Tensor) -> Tensor:
    """Images in [0, 1], each pixel at the nearest of 256 levels."""
    return (images * _LEVELS).round() / _LEVELS


def _picture(image: Tensor) -> Image.Image:
    if not (image.amin() >= 0 and image.amax() <= 1):
        raise ValueError(f"picture must lie in [0, 1], got [{image.amin():.3g}, {image.amax():.3g}]")
    pixels = (image.detach().cpu() * _LEVELS).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def _check_kind(image: Image.Image, path: Path) -> None:
    if getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"{path} is animated, {image.n_frames} frames: save one of them as PNG")
    with open(path, "rb") as file:
        header = file.read(26)
    # The 25th byte of a PNG is its bit depth; PIL would cut 16 bits down to 8 without a word.
    if image.mode.startswith("I") or (header.startswith(_PNG) and header[24] == 16):
        raise ValueError(f"{path} has 16 bits a channel, expected 8: save it as 8-bit RGB")
    if image.mode != "RGB" or "transparency" in image.info:
        kind = "a transparent colour" if image.mode == "RGB" else _KINDS.get(image.mode, f"the mode {image.mode}")
        raise ValueError(f"{path} has {kind}, expected RGB: flatten it and save it as 8-bit RGB")
