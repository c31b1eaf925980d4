"""The log by rounds for TensorBoard, where that is installed."""

from __future__ import annotations

from pathlib import Path

from nslib.finetune.result import history_table
from nslib.finetune.state import Place, Round


class Board:
    """Scalars of each round in the folder `<stem of the target>.tensorboard` beside the target.

    A run that goes on takes back those of rounds it repeats. Without the package, or a target, nothing is written.
    """

    def __init__(self, target: Path | None, place: Place):
        self.folder = target.with_suffix(".tensorboard") if target else None
        self._first, self._writer = place.round, None

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_) -> None:
        if self._writer:
            self._writer.close()

    def write(self, number: int, current: Round, *, lr: float) -> None:
        """Add a round: the columns of `history_table` that are numbers, and the next update's learning rate."""
        if self.folder and not self._writer:
            self._open()
        if not self._writer:
            return
        row = history_table([current]).drop(columns="round").select_dtypes("number").iloc[0].to_dict()
        for name, value in {**row, "lr": lr}.items():
            self._writer.add_scalar(name, value, number)
        self._writer.flush()

    def _open(self) -> None:
        """At the first round: a run that is refused leaves no folder."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # not there, or older than torch asks for
            return
        self._writer = SummaryWriter(self.folder, purge_step=self._first)
