"""Where a run is, kept in a file, so that a run that was killed goes on to the weights of an unbroken one."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nslib.finetune.noises import NoiseFacts, Search
from nslib.finetune.updates import Trainer
from nslib.runtime import atomic_path, to_json


@dataclass
class Round:
    """The record of one round, filled as it goes on. Units are those of `nslib.finetune.cost.Meter`."""

    noises: list[NoiseFacts] = field(default_factory=list)
    noise_seconds: float = 0.0
    noise_units: float = 0
    losses: list[float] = field(default_factory=list)  # of each update
    update_seconds: float = 0.0
    update_units: float = 0
    measured: dict[str, Any] = field(default_factory=dict)  # what on_round returned


def rounds_of(plain: list[dict[str, Any]]) -> list[Round]:
    """The rounds of a history as it is kept in JSON."""
    return [Round(**r | {"noises": [NoiseFacts(**n) for n in r["noises"]]}) for r in plain]


@dataclass
class Place:
    """The next update to make, the round's noises (n, N, D) if it has any, and the rounds so far, this one included
    once its noise is found."""

    round: int = 0
    step: int = 0
    noise: Tensor | None = None
    history: list[Round] = field(default_factory=list)


class StateFile:
    """The saved state of a run, beside its target; does nothing without a target.

    Random numbers are functions of the place in the run (`nslib.finetune.draws`), so that the place stands for them.

    Args:
        settings: plain values that must be the same when a run goes on.
        writes: whether this process is the one that saves.
    """

    def __init__(self, target: Path | None, settings: dict[str, Any], *, writes: bool):
        self.path = target and target.with_suffix(".training.pt")
        self.search_path = target and target.with_suffix(".search.pt")
        self.settings = json.loads(to_json(settings))
        self.writes = writes and target is not None

    def save(self, trainer: Trainer, place: Place) -> None:
        """Replace the saved state by that of now.

        Raises:
            OSError: it cannot be written, such as on a full disk; the state saved before is kept.
        """
        if not self.writes:
            return
        state = trainer.state_dict() | {
            "settings": to_json(self.settings),
            "history": to_json([asdict(r) for r in place.history]),
            "place": {"round": place.round, "step": place.step, "noise": place.noise},
        }
        _write(self.path, state)

    def search(self, round_: int) -> Search:
        """The search for the noise of a round, kept in a small file of its own: a model is large, a noise is not."""
        key = {"round": round_, "settings": to_json(self.settings)}
        begun = torch.load(self.search_path, map_location="cpu", weights_only=True) if self._searching() else {}
        if any(begun.get(name) != value for name, value in key.items()):
            begun = {}  # of a round that is done, or of another run
        return Search(begun, lambda state: _write(self.search_path, state | key) if self.writes else None)

    def _searching(self) -> bool:
        return self.search_path is not None and self.search_path.is_file()

    def restore(self, trainer: Trainer) -> Place:
        """Put the trainer into the saved state and return its place; the beginning where nothing is saved.

        Raises:
            ValueError: the file cannot be read, or was made with other settings; lists the differences.
        """
        if self.path is None or not self.path.is_file():
            return Place()
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)  # parts move it themselves
            settings = json.loads(saved["settings"])
        except Exception as error:  # torch raises many kinds for a damaged file
            raise ValueError(f"saved state {self.path} cannot be read ({error}): remove it to start anew") from error
        told = differences(settings, self.settings)
        if told:
            raise ValueError(f"{self.path} was made with other settings: {'; '.join(told)}; remove it to start anew")
        trainer.load_state_dict(saved)
        history = rounds_of(json.loads(saved["history"]))
        place = Place(**saved["place"], history=history)
        if place.noise is not None:
            place.noise = place.noise.to(trainer.model.device)
        return place

    def remove(self) -> None:
        """Delete the saved state of a run that is done."""
        if self.writes:
            self.path.unlink(missing_ok=True)
            self.search_path.unlink(missing_ok=True)


def _write(path: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()  # torch reports a full disk as a RuntimeError, Python as what it is
    torch.save(state, buffer)
    with atomic_path(path) as partial:
        partial.write_bytes(buffer.getbuffer())


def differences(saved: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Settings that are not the same, by dotted name, as `noise.lr was 0.1, is 0.02`."""
    told = []
    for name in sorted(saved.keys() | now.keys()):
        old, new = saved.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            told += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            told.append(f"{prefix}{name} was {old!r}, is {new!r}")
    return told
