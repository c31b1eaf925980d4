"""What a notebook leaves behind: figures with their data, tables, verdicts, and how all of it was made."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from PIL import Image

from nslib.profiles import PROFILES
from nslib.report.claims import Judged, Verdict, judge
from nslib.report.conditions import setting_differences
from nslib.report.gather import short_hash
from nslib.runtime import atomic_path, figures_path, plain_values, run_record, to_json, write_text
from nslib.settings import Settings, overridden


class Record:
    """Collects the results of one notebook under `figures/<run name>/`.

    `<notebook>_<name>.png`, `.pdf` and `.csv` for figures, `.png` for pictures, `.csv` for tables, and
    `records/<notebook>.json` for the rest.
    """

    def __init__(self, notebook: str, settings: Settings):
        self.notebook, self.settings = notebook, settings
        self.folder = figures_path(settings.run_name)
        self.verdicts: list[Verdict] = []
        self._files: list[str] = []
        self._started = time.monotonic()
        if told := displaced(notebook, settings):
            warnings.warn(told, stacklevel=2)

    def table(self, name: str, table: pd.DataFrame) -> None:
        """Save a table as CSV, six significant digits."""
        text = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        with self._file(f"{name}.csv") as partial:
            partial.write_text(without_paths(text, self.settings), encoding="utf-8")

    def figure(self, name: str, figure: plt.Figure, table: pd.DataFrame | None) -> None:
        """Save a figure as PNG and PDF, byte-stable, and the table that was drawn, unless it is saved elsewhere.

        The PNG has 256 colours, each within 14 of 255 of the drawn one in all figures of this repository, and takes
        less than half the space.
        """
        with self._file(f"{name}.png") as partial:
            _write_png(figure, partial, colours=256)
        with self._file(f"{name}.pdf") as partial:
            figure.savefig(partial, metadata={"CreationDate": None, "Producer": None})
        if table is not None:
            self.table(name, table)

    def pictures(self, name: str, figure: plt.Figure) -> None:
        """Save a figure of pictures, byte-stable: as PNG alone, for a PDF would hold the same pixels once more."""
        with self._file(f"{name}.png") as partial:
            _write_png(figure, partial)

    @contextmanager
    def _file(self, name: str) -> Iterator[Path]:
        """Where to write a file of this notebook, which is listed once it is whole.

        Warns:
            UserWarning: it has written one of this name, in a cell that is run twice or in another.
        """
        file = f"{self.notebook}_{name}"
        if file in self._files:
            warnings.warn(f"{file} is written anew: were it another cell's, it would need another name", stacklevel=4)
        with atomic_path(self.folder / file) as partial:
            yield partial
        self._files = [f for f in self._files if f != file] + [file]

    def judge(self, claim: str, part: str, estimates: Judged) -> Verdict:
        """Apply the claim's written rule and keep the verdict; of a cell that is run twice the last one."""
        verdict = judge(claim, part, estimates, profile=self.settings.profile)
        self.verdicts = [v for v in self.verdicts if (v.claim, v.part) != (claim, part)] + [verdict]
        return verdict

    def summary(self) -> pd.DataFrame:
        """The verdicts so far, rounded for reading."""
        columns = ["claim", "part", "verdict", "rule", "of", "value", "low", "high", "n", "seeds"]
        return pd.DataFrame([asdict(v) for v in self.verdicts], columns=columns).round(4)

    def save(self, **facts) -> dict:
        """Write the record; facts are further plain values worth keeping."""
        record = run_record(
            portable(self.settings),
            notebook=self.notebook,
            minutes=round((time.monotonic() - self._started) / 60, 2),
            verdicts=[asdict(v) for v in self.verdicts],
            files=sorted(self._files),
            hashes={file: short_hash(self.folder / file) for file in sorted(self._files)},
            facts=facts,
        )
        told = without_paths(plain_values(record), self.settings)
        write_text(self.folder / "records" / f"{self.notebook}.json", to_json(told) + "\n")
        return told


def displaced(notebook: str, settings: Settings) -> str:
    """In words, that settings other than the profile's own put new results in the place of some without; else empty."""
    path = figures_path(settings.run_name) / "records" / f"{notebook}.json"
    try:
        there = json.loads(path.read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError):  # none, or a damaged one
        return ""
    of_profile = overridden(Settings(settings.profile, settings.run_name), PROFILES[settings.profile])
    now, own = (plain_values(portable(s)) for s in (settings, of_profile))
    changed = {d.name for d in setting_differences({"own": own, "now": now})}
    values = {d.name: [v for v, _ in d.values] for d in setting_differences({"there": there, "now": now})}
    told = [f"{name} {v[0]}, now {v[1]}" for name, v in values.items() if name in changed and None not in v]
    if not told:
        return ""
    more = f" and {len(told) - 3} more" if told[3:] else ""
    return (
        f"figures/{settings.run_name} has results of {notebook} with other settings ({'; '.join(told[:3])}{more}): "
        "they are written over, unless run_name names another folder"
    )


def without_paths(told: Any, settings: Settings) -> Any:
    """A text, or plain values with texts, in which folders of this machine go by the setting that named them.

    They stand in the reason why a column is missing, say.
    """
    folders = {name: str(Path(path).expanduser().absolute()) for name, path in settings.data.paths().items()}
    longest = sorted(folders, key=lambda n: -len(folders[n]))  # imagenet/a before imagenet
    patterns = {name: re.compile(re.escape(folders[name]) + r"(?![\w-])") for name in longest}

    def portable_of(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: portable_of(v) for name, v in value.items()}
        if isinstance(value, list):
            return [portable_of(v) for v in value]
        if isinstance(value, str):
            for name, pattern in patterns.items():
                value = pattern.sub(f"<data.{name}>", value)
        return value

    return portable_of(told)


def portable(settings: Settings) -> Settings:
    """Folders by their names alone: where they lay on this machine tells a reader nothing."""
    data = replace(settings.data, **{name: Path(path).name for name, path in settings.data.paths().items()})
    weights = {name: Path(getattr(settings, name)).name for name in ("weights", "surrogate_weights")}
    return replace(settings, data=data, **weights)


def _write_png(figure: plt.Figure, path: Path, colours: int | None = None) -> None:
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    with Image.open(drawn) as drawing:
        picture = drawing.convert("RGB")  # without transparency a tenth less
        if colours:
            picture = picture.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        picture.save(path, format="PNG", optimize=True, dpi=drawing.info["dpi"])
