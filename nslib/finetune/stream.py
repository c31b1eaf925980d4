"""Which images of the train split are for the noise, and which ones each update of the model sees."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import torch

from nslib.config import FinetuneConfig
from nslib.data.shapes import Batch
from nslib.data.source import FolderSource, Source, check_classes, checked
from nslib.finetune.draws import draws
from nslib.machine.processes import Share
from nslib.vit.staged import StagedViT


class Stream:
    """Images 0 ... pool + heldout of split train are for learning noise; the model is finetuned on the others only.

    Update s of the whole run sees places s * batch ... (s + 1) * batch. In an endless data set places are images, those
    of a seed after all of the seed before; in one that ends, each pass over the images has an order of its own, drawn
    from the seed, and a batch may begin in one pass and end in the next. Several processes take one part each of every
    batch.

    Raises:
        ValueError: no image is left to train on; the classes are not those of the model's head; the number of
            processes does not divide the batch; there are more groups than classes.
    """

    def __init__(self, source: Source, model: StagedViT, cfg: FinetuneConfig, share: Share):
        self.source, self.model, self.cfg = source, model, cfg
        check_classes(source, model)
        if cfg.groups > model.num_classes:
            raise ValueError(f"groups must be at most {model.num_classes}, the classes of the model, got {cfg.groups}")
        self.part = share.size(cfg.batch)
        self.offset = share.rank * self.part
        self.first = cfg.pool + cfg.heldout
        total = source.count("train")
        if total is not None and total <= self.first:
            fitting = f"finetune.pool={total // 4 or 1} finetune.heldout={total // 8 or 1}"
            raise ValueError(f"train holds {total} images and pool + heldout = {self.first} are for the noise: none is "
                             f"left to train on; lower them, such as --set {fitting}")  # fmt: skip
        self.length = None if total is None else total - self.first
        self._pass, self._order = -1, torch.empty(0, dtype=torch.int64)

    def check_files(self) -> None:
        """Make sure that all images of the run can be read, those of a folder: it would break off at one that cannot,
        and with another in its place could not go on.

        Raises:
            OSError: as `ImageFiles.check`.
        """
        if not isinstance(self.source, FolderSource):
            return
        places = self.cfg.rounds * self.cfg.steps * self.cfg.batch
        seen = range(self.first, self.first + self.length)
        if places < self.length:
            seen = [self._row(place) for place in range(places)]
        self.source.open("train").check([*range(self.first), *seen])

    @cached_property
    def for_noise(self) -> Batch:
        """The images to learn noise from, and after them the held-out ones, (pool + heldout, C, H, W), and labels."""
        return checked(self.source.take("train", self.first), self.first, self.model)

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """This process's part of the batches of updates first ... last - 1, files being read one batch ahead."""
        if self.length is None or first == last:
            yield from map(self.batch, range(first, last))
            return
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self.batch, first)
            for update in range(first, last):
                batch = ahead.result()
                ahead = reader.submit(self.batch, update + 1) if update + 1 < last else ahead
                yield batch

    def batch(self, update: int) -> Batch:
        """This process's part of the batch of one update."""
        place = update * self.cfg.batch + self.offset
        if self.length is None:
            before = self.cfg.seed * self.cfg.rounds * self.cfg.steps * self.cfg.batch
            start = self.first + before + place
            return checked(self.source.take("train", self.part, start=start), self.part, self.model)
        rows = [self._row(p) for p in range(place, place + self.part)]
        return checked(self.source.pick("train", rows), self.part, self.model)

    def _row(self, place: int) -> int:
        turn, slot = divmod(place, self.length)
        if turn != self._pass:
            order = torch.randperm(self.length, generator=draws(self.cfg.seed, "order", turn))
            self._pass, self._order = turn, order
        return self.first + int(self._order[slot])
