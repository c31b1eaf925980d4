"""Images of `shapes` that are rendered once and seen many times, for where to render takes longer than to train."""

from __future__ import annotations

import torch

from nslib.data.hashing import key
from nslib.data.shapes import Batch, render
from nslib.runtime import generator

_AT_ONCE = 1024  # images rendered


class Rendered:
    """The first images of split train on a device, a byte a value, and batches drawn from them.

    What is in an image stays what it is when that is turned by a quarter or mirrored, so that each counts as eight.

    Raises:
        ValueError: they do not fit into the device's memory; says how much they take.
    """

    def __init__(self, images: int, batch: int, *, seed: int, size: int, device: str | torch.device):
        self.batch, self.seed = batch, seed
        try:
            self.levels = torch.empty(images, 3, size, size, dtype=torch.uint8, device=device)
        except RuntimeError as error:
            need = images * 3 * size**2 / 1e9
            raise ValueError(
                f"{images} images of {size} px take {need:.1f} GB of {device}: lower images, or set it to 0, which "
                "draws fresh ones at every step"
            ) from error
        self.labels = torch.empty(images, dtype=torch.int64, device=device)
        for rows in torch.arange(images, device=device).split(_AT_ONCE):
            drawn, self.labels[rows] = render("train", rows, seed=seed, size=size, device=device)
            self.levels[rows] = (drawn * 255).round().to(torch.uint8)

    def draw(self, step: int) -> Batch:
        """The batch of a step, which depends on seed and step alone; an eighth of it stands each way."""
        draws = generator(key(self.seed, step).item())
        rows = torch.randint(len(self.levels), (self.batch,), generator=draws).to(self.levels.device)
        parts = enumerate((self.levels[rows].float() / 255).tensor_split(8))
        turned = [part.rot90(way, (2, 3)) if way < 4 else part.rot90(way, (2, 3)).flip(3) for way, part in parts]
        return Batch(torch.cat(turned), self.labels[rows])
