"""What a finetuning leaves behind: weights that timm loads, a record that says how they were made, a log by rounds."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file, save_file

from nslib.finetune.cost import STANDARD_TRAINING
from nslib.finetune.state import Place, Round, rounds_of
from nslib.processes import Share
from nslib.runtime import atomic_path, run_record, to_json, write_text
from nslib.staged import StagedViT


def finished(
    target: Path | None, model: StagedViT, settings: dict[str, Any]
) -> tuple[StagedViT, list[Round], dict[str, Any]] | None:
    """Model, history and record of a run that is done with these settings already, else None."""
    if target is None or not (target.is_file() and target.with_suffix(".json").is_file()):
        return None
    record = json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))
    if record["config"] != json.loads(to_json(settings)):
        return None
    made = deepcopy(model)
    made.vit.load_state_dict(load_file(target))
    return made.eval(), rounds_of(record["rounds"]), record


def write_result(
    target: Path | None, model: StagedViT, settings: dict[str, Any], history: list[Round], share: Share
) -> dict[str, Any]:
    """The record of a run, written with its weights by the first process if there is a target."""
    cfg = settings["finetune"]
    missed = [k for k, r in enumerate(history) if not all(n.converged for n in r.noises)]
    noise, updates = (sum(getattr(r, part) for r in history) for part in ("noise_units", "update_units"))
    record = run_record(
        settings,
        rounds=[asdict(r) for r in history],
        missed_eps=missed,
        processes=share.count,
        minutes=round(sum(r.noise_seconds + r.update_seconds for r in history) / 60, 2),
        images=cfg.rounds * cfg.steps * cfg.batch,
        units={"noise": noise, "updates": updates},
        images_of_standard_training=(noise + updates) / STANDARD_TRAINING,
    )
    if target is not None and share.rank == 0:
        with atomic_path(target) as partial:
            save_file({k: v.cpu().contiguous() for k, v in model.vit.state_dict().items()}, partial)
        write_text(target.with_suffix(".json"), to_json(record) + "\n")
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


class Log:
    """One JSON line for each round, beside the target. A run that goes on drops the lines of rounds it repeats."""

    def __init__(self, target: Path | None, place: Place, *, writes: bool):
        self.path = target.with_suffix(".jsonl") if target and writes else None
        if self.path:
            lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
            write_text(self.path, "".join(f"{line}\n" for line in lines[: place.round]))

    def write(self, number: int, current: Round) -> None:
        """Add the line of a round."""
        if self.path:
            with open(self.path, "a", encoding="utf-8") as log:
                log.write(to_json({"round": number, **asdict(current)}, indent=None) + "\n")
