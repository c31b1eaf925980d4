"""Image files with their labels, read when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from nslib.data.shapes import Batch
from nslib.data.transforms import in_words
from nslib.runtime import generator
from nslib.store import digest

_AT_ONCE = 4096  # files that are looked at


class ImageFiles:
    """Image files with their labels, read when asked for.

    They come in an order drawn from `seed`, so that the first n are spread over the classes.

    Args:
        folder: what errors name, and file names are told from.
        files: (path, label), in any order.
        transform: PIL image -> uint8 (C, H, W).
        layout: told when there are no files.
    Raises:
        FileNotFoundError: there are no files.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[tuple[Path, int]],
        transform: Callable[[Image.Image], Tensor],
        *,
        layout: str,
        seed: int = 0,
    ):
        if not files:
            raise FileNotFoundError(f"no images in {folder}: expected {layout}")
        self.folder, self.transform = folder, transform
        self.files = [files[i] for i in torch.randperm(len(files), generator=generator(seed))]

    def __len__(self) -> int:
        return len(self.files)

    def load(self, indices: Sequence[int]) -> Batch:
        """Images (B, C, H, W) in [0, 1] and labels (B,).

        Raises:
            OSError: some images cannot be read; counts and names them, none is skipped in silence.
        """
        chosen = [self.files[i] for i in indices]
        with ThreadPoolExecutor() as pool:
            levels = list(pool.map(lambda item: self._read(item[0]), chosen))
        broken = [str(item[0]) for item, image in zip(chosen, levels, strict=True) if image is None]
        if broken:
            raise _unreadable(broken, len(chosen), "; a run that was begun goes on only with the same files")
        images = torch.stack(levels).float().div_(255)
        return Batch(images, torch.tensor([label for _, label in chosen]))

    def check(self, indices: Sequence[int]) -> None:
        """Make sure, before hours of work with them, that files can be read.

        A JPEG that ends as one is taken for whole, any other file is read.

        Raises:
            OSError: some cannot be; counts and names them.
        """
        broken = []
        with ThreadPoolExecutor() as pool:
            for begin in range(0, len(indices), _AT_ONCE):
                paths = [self.files[i][0] for i in indices[begin : begin + _AT_ONCE]]
                whole = pool.map(lambda path: _is_whole_jpeg(path) or self._read(path) is not None, paths)
                broken += [str(path) for path, fine in zip(paths, whole, strict=True) if not fine]
        if broken:
            raise _unreadable(broken, len(indices))

    def identity(self) -> dict[str, Any]:
        """Plain values on which `load` depends: labels, names and sizes of the files in order, their times, transform.

        Contents are not read, so `times` tell apart what was changed without a change of size. A copy has others: what
        took hours is known without them (`nslib.store.timeless`).
        """
        stats = [path.stat() for path, _ in self.files]
        told = [
            (path.relative_to(self.folder).as_posix(), label, stat.st_size)
            for (path, label), stat in zip(self.files, stats, strict=True)
        ]
        return {
            "images": len(told),
            "files": digest(told),
            "times": digest([stat.st_mtime_ns for stat in stats]),
            "transform": in_words(self.transform),
        }

    def _read(self, path: Path) -> Tensor | None:
        try:
            with Image.open(path) as image:
                return self.transform(in_colours(image))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return None


def in_colours(image: Image.Image) -> Image.Image:
    """An image in RGB.

    Raises:
        ValueError: it has more than 8 bits a channel, which would be cut off at 255.
    """
    if image.mode[0] in "IF":
        raise ValueError(f"an image of mode {image.mode} has more than 8 bits a channel: convert it")
    return image.convert("RGB")


def _is_whole_jpeg(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            begins = file.read(3) == b"\xff\xd8\xff"
            file.seek(-2, os.SEEK_END)
            return begins and file.read() == b"\xff\xd9"
    except OSError:  # also of less than two bytes
        return False


def _unreadable(broken: Sequence[str], of: int, told: str = "") -> OSError:
    names = ", ".join(broken[:5]) + (" ..." if len(broken) > 5 else "")
    return OSError(f"{len(broken)} of {of} images are unreadable or truncated: {names}: fetch them again or move them "
                   f"away, convert those of more than 8 bits a channel{told}")  # fmt: skip
