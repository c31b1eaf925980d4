"""Pictures as files: 8-bit RGB in, 8-bit RGB out, with nothing lost or made up on the way."""

from __future__ import annotations

import io
import re
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from nslib.runtime import atomic_path

_LEVELS = 255
_UNREADABLE = (OSError, SyntaxError, ValueError, IndexError, TypeError, NotImplementedError)  # of damaged files, by PIL
_TIFF_BITS = 258  # the tag BitsPerSample
_PPM_HEADER = 4096  # bytes that hold it, comments included
_KINDS = {"L": "greyscale", "1": "black and white", "P": "a palette", "RGBA": "an alpha channel",
          "LA": "greyscale with an alpha channel", "PA": "an alpha channel", "RGBa": "an alpha channel"}  # fmt: skip


def read_picture(path: str | Path) -> Tensor:
    """An 8-bit RGB picture, (3, H, W) in [0, 1], upright where its file says how it was turned.

    Raises:
        FileNotFoundError: no such file.
        OSError: it cannot be read as a picture, or is truncated.
        ValueError: it is animated, has 16 bits a channel, an alpha channel, or is greyscale: what to do with these is
            the user's choice; or it has so many pixels that PIL takes it for an attack.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no picture at {path}")
    try:
        with Image.open(path) as image:
            unfit = _unfit(image, path)
            levels = None if unfit else pil_to_tensor(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large ({error}): resize it to the model's image size") from error
    except _UNREADABLE as error:
        raise OSError(f"{path} cannot be read as a picture ({error}): save it again as PNG") from error
    if unfit:
        raise ValueError(f"{path} {unfit}")
    return levels.float() / _LEVELS


def write_picture(path: str | Path, image: Tensor) -> Path:
    """Save (3, H, W) in [0, 1] as 8-bit PNG, atomically, rounded to the nearest level.

    Raises:
        ValueError: another suffix than .png, which alone keeps every pixel, or values outside [0, 1].
    """
    path = Path(path).expanduser()
    check_png(path)
    with atomic_path(path) as partial:
        _picture(image).save(partial, format="PNG")
    return path


def check_png(path: Path) -> None:
    """Refuse a file to write of another suffix than .png.

    Raises:
        ValueError: so it has.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path} must end in .png: JPEG would change the pixels that hold the nullspace noise")


def through_files(images: Tensor) -> Tensor:
    """What is left of images (B, 3, H, W) in [0, 1] that are saved as PNG and read again."""
    with tempfile.TemporaryDirectory() as folder:
        files = [write_picture(f"{folder}/{i}.png", image) for i, image in enumerate(images)]
        return torch.stack([read_picture(file) for file in files]).to(images)


def as_jpeg(image: Tensor) -> Tensor:
    """What is left of (3, H, W) in [0, 1] after JPEG at quality 95, in memory."""
    buffer = io.BytesIO()
    _picture(image).save(buffer, format="JPEG", quality=95)
    with Image.open(buffer) as jpeg:
        return pil_to_tensor(jpeg).float() / _LEVELS


def eight_bit(images: Tensor) -> Tensor:
    """Images in [0, 1], each pixel at the nearest of 256 levels."""
    return (images * _LEVELS).round() / _LEVELS


def _picture(image: Tensor) -> Image.Image:
    if not (image.amin() >= 0 and image.amax() <= 1):
        raise ValueError(f"picture must lie in [0, 1], got [{image.amin():.3g}, {image.amax():.3g}]")
    return to_pil_image((image.detach().cpu() * _LEVELS).round().to(torch.uint8))


def _bits(image: Image.Image, path: Path) -> int:
    """How many bits a channel has in the file, where its format may have more than 8."""
    if image.format == "PNG":
        with open(path, "rb") as file:
            return file.read(25)[24]  # of the header
    if image.format == "TIFF":
        return max(image.tag_v2.get(_TIFF_BITS, (8,)))
    if image.format == "PPM":
        with open(path, "rb") as file:
            fields = re.sub(rb"#.*", b"", file.read(_PPM_HEADER)).split()
        if fields[0] in (b"P1", b"P4"):  # black and white, which have no largest value
            return 1
        if fields[0] in (b"PF", b"Pf"):  # a scale, whose sign tells the order of bytes, stands in its place
            return 32
        return int(fields[3]).bit_length()  # magic, width, height, largest value
    return 8


def _unfit(image: Image.Image, path: Path) -> str:
    """What an opened file has or is that is not 8-bit RGB, and what to do; empty if nothing."""
    if getattr(image, "n_frames", 1) > 1:
        return f"is animated, {image.n_frames} frames: save one of them as PNG"
    if image.mode[0] in "IF" or _bits(image, path) > 8:  # PIL cuts 16 bits down to 8 without a word
        return f"has {max(_bits(image, path), 16)} bits a channel, expected 8: save it as 8-bit RGB"
    if image.mode != "RGB" or "transparency" in image.info:
        kind = "a transparent colour" if image.mode == "RGB" else _KINDS.get(image.mode, f"the mode {image.mode}")
        return f"has {kind}, expected RGB: flatten it and save it as 8-bit RGB"
    return ""
