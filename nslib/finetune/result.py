"""What a finetuning leaves behind: weights that timm loads, a record that says how they were made, a log by rounds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file

from nslib.config import FinetuneConfig, NoiseConfig
from nslib.finetune.cost import STANDARD_TRAINING
from nslib.finetune.state import Place, Round, rounds_of
from nslib.intervals import slope_estimate
from nslib.machine.processes import Share
from nslib.runtime import first_line, run_record, to_json, write_text
from nslib.store import check_same
from nslib.vit.staged import StagedViT
from nslib.vit.weights import save_weights, told_beside


def finished(
    target: Path | None, model: StagedViT, settings: dict[str, Any], *, begun: bool
) -> tuple[StagedViT, list[Round], dict[str, Any]] | None:
    """Model, history and record of a run that is done with these settings already; None where none is done.

    Args:
        model: into which the weights are loaded.
        begun: there is a saved state: weights without a record are then those of a run that was killed between both.
    Raises:
        ValueError: the target was made with other settings, its record does not tell how, or it is damaged; it is
            not replaced.
    """
    if target is None or not target.is_file():
        return None
    path, remedy = target.with_suffix(".json"), "remove it or take another target"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        config, history = record["config"], rounds_of(record["rounds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if begun and not path.is_file():
            return None
        raise ValueError(
            f"{target} is there, and {path.name} is no record of a finetuning ({type(error).__name__}): {remedy}"
        ) from error
    check_same(target, config, settings, remedy=remedy)
    try:
        model.vit.load_state_dict(load_file(target))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{target} is damaged ({first_line(error)}): {remedy}") from error
    return model.eval().requires_grad_(True), history, record


def write_result(
    target: Path | None,
    model: StagedViT,
    settings: dict[str, Any],
    cfg: FinetuneConfig,
    history: list[Round],
    share: Share,
) -> dict[str, Any]:
    """The record of a run, written with its weights by the first process if there is a target.

    Args:
        settings: as asked for, by which the result is known again.
        cfg: with the precisions that were used.
    Returns:
        among others `takes`, as `told_beside`.
    """
    missed = [k for k, r in enumerate(history) if not all(n.converged for n in r.noises)]
    noise, updates = (sum(getattr(r, part) for r in history) for part in ("noise_units", "update_units"))
    record = run_record(
        settings,
        rounds=[asdict(r) for r in history],
        missed_eps=missed,
        precision=cfg.precision,
        attack_precision=cfg.attack_precision,
        processes=share.count,
        minutes=round(sum(r.noise_seconds + r.update_seconds for r in history) / 60, 2),
        images=cfg.rounds * cfg.steps * cfg.batch,
        units={"noise": noise, "updates": updates},
        images_of_standard_training=(noise + updates) / STANDARD_TRAINING,
        takes=told_beside(model),
    )
    if target is not None and share.rank == 0:
        path = target.with_suffix(".json")
        path.unlink(missing_ok=True)  # new weights never lie beside an old record
        save_weights(model, target)
        write_text(path, to_json(record) + "\n")
    return record


def history_table(history: list[Round]) -> pd.DataFrame:
    """One row for each round: its noise (means where there are several), its losses, costs and what was measured."""
    rows = []
    for k, r in enumerate(history):
        noise = pd.DataFrame([asdict(n) for n in r.noises]).mean(numeric_only=True).to_dict() if r.noises else {}
        losses = {"loss": sum(r.losses) / len(r.losses)} if r.losses else {}
        costs = {name: getattr(r, name) for name in ("noise_units", "update_units", "noise_seconds", "update_seconds")}
        rows.append({"round": k, **noise, **losses, **costs, **r.measured})
    return pd.DataFrame(rows)


def over_seeds(rounds: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """A quantity round by round: the seeds' mean, least and largest.

    Args:
        rounds: rows of `history_table`, with columns objective and seed.
    Returns:
        columns objective, round, value, low, high; no line where no seed has the quantity.
    """
    known = rounds[rounds[quantity].notna()].groupby(["objective", "round"], sort=False)[quantity]
    return known.agg(value="mean", low="min", high="max").reset_index()


def without_decay(rounds: pd.DataFrame, cfg: NoiseConfig) -> pd.DataFrame:
    """Rounds with a further column `norm without decay`: the norm before all that weight decay can have taken of it.

    AdamW shrinks a noise by lr * weight_decay at each step, lr falling to 0 by a cosine. What descent added later was
    shrunk less often, so that this is a bound.

    Args:
        rounds: as of `over_seeds`.
        cfg: with which the noises were learned.
    """
    rates = cfg.lr * (1 + np.cos(np.pi * np.arange(cfg.steps) / cfg.steps)) / 2
    left = np.cumprod([1, *(1 - rates * cfg.weight_decay)])
    kept = rounds.steps.map(lambda steps: left[round(steps)], na_action="ignore")
    return rounds.assign(**{"norm without decay": rounds.norm / kept})


def slope_table(rounds: pd.DataFrame, of: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Change a round, relative to the mean, of quantities of objectives, from the second round on.

    The first noise is learned before any update. Those without a figure in three rounds have no line.

    Args:
        rounds: as of `over_seeds`.
        of: pairs of objective and quantity, such as ("nullspace", "norm").
    Returns:
        columns objective, quantity, value, low, high, n, seeds: see `slope_estimate`.
    """
    lines = []
    for objective, quantity in of:
        own = rounds[(rounds.objective == objective) & (rounds["round"] > 0) & rounds[quantity].notna()]
        values = own.pivot(index="seed", columns="round", values=quantity).to_numpy(dtype=float)
        if values.shape[1] > 2:
            lines.append({"objective": objective, "quantity": quantity, **vars(slope_estimate(values))})
    columns = ["objective", "quantity", "value", "low", "high", "n", "seeds"]
    return pd.DataFrame(lines, columns=columns)


class Log:
    """One JSON line for each round, beside the target. A run that goes on has those of the rounds that are done."""

    def __init__(self, target: Path | None, place: Place):
        self.path = target.with_suffix(".jsonl") if target else None
        if self.path and (place.round or self.path.is_file()):
            write_text(self.path, "".join(_line(k, r) for k, r in enumerate(place.history[: place.round])))

    def write(self, number: int, current: Round) -> None:
        """Add the line of a round.

        Raises:
            OSError: it cannot be written, such as on a full disk.
        """
        if self.path is None:
            return
        try:
            with open(self.path, "a", encoding="utf-8") as log:
                log.write(_line(number, current))
        except OSError as error:
            raise OSError(f"{self.path} could not be written ({error}): make room, and start again to go on") from error


def _line(number: int, done: Round) -> str:
    return to_json({"round": number, **asdict(done)}, indent=None) + "\n"
