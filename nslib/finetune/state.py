"""Where a run is, kept in a file, so that a run that was killed goes on to the weights of an unbroken one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from nslib.config import FinetuneConfig
from nslib.finetune.noises import NoiseFacts, Search
from nslib.finetune.objectives import with_recipe
from nslib.finetune.updates import Trainer
from nslib.runtime import plain_values, to_json
from nslib.store import check_same, load_state, save_state, sweep
from nslib.vit.staged import StagedViT
from nslib.vit.weights import save_weights


@dataclass
class Round:
    """The record of one round, filled as it goes on. Units are those of `nslib.finetune.cost.Meter`."""

    noises: list[NoiseFacts] = field(default_factory=list)
    noise_seconds: float = 0.0
    noise_units: float = 0
    losses: list[float] = field(default_factory=list)  # of each update
    update_seconds: float = 0.0
    update_units: float = 0
    influence: dict[str, Any] = field(default_factory=dict)  # what on_noise returned
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


def identity_of(cfg: FinetuneConfig) -> FinetuneConfig:
    """By what results are told apart: how often a run is saved changes none, nor what its objective does not take."""
    return replace(with_recipe(cfg), checkpoint_every=FinetuneConfig.checkpoint_every)


class StateFile:
    """The saved state of a run, beside its target; does nothing without a target.

    Random numbers are functions of the place in the run (`nslib.finetune.draws`), so that the place stands for them.

    Args:
        settings: plain values that must be the same when a run goes on.
        writes: whether this process is the one that saves.
    """

    def __init__(self, target: Path | None, settings: dict[str, Any], *, writes: bool):
        self.target = target
        self.path = target and target.with_suffix(".training.pt")
        self.search_path = target and target.with_suffix(".search.pt")
        self.good_path = target and target.with_suffix(".good.safetensors")
        self.settings = plain_values(settings)
        self.writes = writes and target is not None
        self._told = ""
        self._empty = False  # nothing lies in the saved state yet but the settings

    def save(self, trainer: Trainer, place: Place) -> None:
        """Replace the saved state by that of now.

        Raises:
            OSError: it cannot be written, such as on a full disk; the state saved before is kept.
        """
        self._note(place)
        if not self.writes:
            return
        state = trainer.state_dict() | {
            "history": to_json([asdict(r) for r in place.history]),
            "place": {"round": place.round, "step": place.step, "noise": place.noise},
        }
        save_state(self.path, self.settings, state)

    @property
    def last_good(self) -> str:
        """The state that was saved last, in words with its file; empty without a target."""
        return f"{self.path}, {self._told}" if self.path else ""

    def keep_good(self, model: StagedViT) -> str:
        """Write the weights from before a round that failed, with which other settings can start; returns where.

        They are kept until the run itself comes to its end, so that a start from them needs another target.

        Raises:
            OSError: they cannot be written, such as on a full disk.
        """
        if self.writes:
            save_weights(model, self.good_path)
        return str(self.good_path or "")

    def search(self, round_: int) -> Search:
        """The search for the noise of a round, kept in a small file of its own: a model is large, a noise is not.

        Raises:
            ValueError: the file cannot be read.
        """
        path = self.search_path
        begun = load_state(path, remedy="remove it to begin this search anew") if path and path.is_file() else {}
        if (begun.get("round"), begun.get("settings")) != (round_, self.settings):
            begun = {}  # of a round that is done, or of another run

        def save(state: dict[str, Any]) -> None:
            if self.writes:
                save_state(path, self.settings, state | {"round": round_})

        return Search(begun, save)

    @property
    def begun(self) -> bool:
        """Whether there is a state to go on from."""
        return self.path is not None and self.path.is_file()

    def restore(self, trainer: Trainer) -> Place:
        """Put the trainer into the saved state and return its place; the beginning where nothing is saved.

        What a kill in the middle of writing has left beside the target is removed.

        Raises:
            ValueError: the file cannot be read, or was made with other settings; lists the differences.
        """
        if self.writes:
            sweep(self.target, self.path, self.search_path, self.good_path)
        if not self.begun:
            if self.writes:
                self.search_path.unlink(missing_ok=True)  # of a run whose state was removed
            return Place()
        saved = load_state(self.path)
        remedy = "with these as they were it goes on, or remove it to start anew"
        check_same(self.path, saved["settings"], self.settings, remedy=remedy)
        trainer.load_state_dict(saved)  # parts move it to the device themselves
        history = rounds_of(json.loads(saved["history"]))
        place = Place(**saved["place"], history=history)
        if place.noise is not None:
            place.noise = place.noise.to(trainer.model.device)
        self._note(place)
        return place

    def _note(self, place: Place) -> None:
        self._told = f"round {place.round} after {place.step} updates"
        self._empty = (place.round, place.step, place.noise) == (0, 0, None)

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """Inside the block a run that fails before its first update leaves no state that has only its settings: others,
        with which it would be mended, would be refused for it. One that diverges keeps it, for its error names it."""
        try:
            yield
        except Exception as error:
            diverged = isinstance(error, FloatingPointError)
            if self.writes and self._empty and not diverged and not self.search_path.is_file():
                self.path.unlink(missing_ok=True)
            raise

    def remove(self) -> None:
        """Delete the saved state of a run that is done."""
        if self.writes:
            self.path.unlink(missing_ok=True)
            self.search_path.unlink(missing_ok=True)
            self.good_path.unlink(missing_ok=True)
