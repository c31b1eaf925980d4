"""Results of long runs as small text files that a repository can hold: a later run computes only what is missing.

A file lies at `figures/<run name>/records/jobs/<name>.json`. It holds all settings and digests of all inputs, how and
when it was made, and the result.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from nslib.config import FinetuneConfig, SuiteConfig
from nslib.evaluate.columns import BESIDE, COLUMNS
from nslib.evaluate.suite import Evaluation
from nslib.finetune.objectives import idle
from nslib.machine.makers import only_maker
from nslib.runtime import figures_path, plain_values, run_record, to_json, write_text
from nslib.store import changed_settings, sweep, timeless
from nslib.studies import ApproximateStudy

_taken: dict[Path, None] = {}  # files whose results this process has used
_SUITE = SuiteConfig(cw_early_stop=True)  # how the code was before there was this setting
_REACH = {"reach": ApproximateStudy(), "reach_version": 1}
_DEFAULTS = plain_values({"finetune": FinetuneConfig(), "suite": _SUITE, "trace": _SUITE, **_REACH})


def jobs_path(run_name: str) -> Path:
    """Where the results of a run's jobs are kept."""
    return figures_path(run_name) / "records" / "jobs"


def kept(path: Path | None, inputs: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result in this file; computed now and written there if there is none.

    A setting that did not exist yet when the file was written counts as its default, which is how the code of then
    behaved; what the file names and is no longer asked for does not count. Two processes that want the same file
    compute it once. A file that was made from other inputs is never overwritten: it may have taken hours. The times of
    image files are no input, see `timeless`.

    Args:
        path: None computes without keeping.
        inputs: plain values and dataclasses; of `finetune`, `suite`, `trace`, `reach` and `reach_version` the defaults
            are known.
        compute: returns plain (JSON) values by name.
    Raises:
        ValueError: the file is damaged, or was made from other inputs; names it and the differences.
        OSError: it cannot be written.
    """
    if path is None:
        return compute()
    now = timeless(plain_values(inputs))
    with ExitStack() as alone:
        try:
            alone.enter_context(only_maker(path))
            sweep(path)
        except OSError:
            if not path.is_file():
                raise  # else nothing need be written
        if not path.is_file():
            write_text(path, to_json(run_record(now, result=compute())) + "\n")
    record = read_kept(path)
    told = changed_settings(_comparable(record["config"], now), now)
    if told:
        raise ValueError(
            f"{path} was made from other inputs: {'; '.join(told)}; remove it to compute it anew, or take another "
            "--run-name"
        )
    _taken[path] = None
    return record["result"]


def taken(folder: Path) -> list[Path]:
    """The files of a folder whose results this process has used so far, a notebook say, in the order of their names."""
    return sorted(path for path in _taken if path.parent == folder)


def read_kept(path: Path) -> dict[str, Any]:
    """A kept file: its config, result, versions, commit, hardware and day made.

    Raises:
        ValueError: the file is damaged; names it.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {name: record[name] for name in ("config", "result", "versions", "commit", "hardware", "made")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): remove it to compute it anew"
        ) from error


def _comparable(made: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a file as they would be named now: other parts, and settings that are idle now, tell nothing."""
    filled = _filled({name: value for name, value in made.items() if name in now}, _DEFAULTS, now)
    for part in {"finetune", "trace", "suite", "columns", "shown"} & filled.keys():
        asked, old = now[part], filled[part]
        if isinstance(asked, dict) and isinstance(old, dict):
            filled[part] = {name: value for name, value in old.items() if name in asked}
            for name in idle(asked.get("objective", "")):
                head, _, rest = name.partition(".")
                filled[part][head] = filled[part][head] | {rest: asked[head][rest]} if rest else asked[head]
    return filled


def _filled(settings: dict[str, Any], defaults: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Settings, and with their defaults those that are known now and were not when the settings were written."""
    filled = dict(settings)
    for name in now.keys() & defaults.keys():
        if isinstance(settings.get(name), dict) and isinstance(now[name], dict):
            filled[name] = _filled(settings[name], defaults[name], now[name])
        elif name not in settings:
            filled[name] = defaults[name]
    return filled


def packed(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as plain values, one bit an image."""
    hits = {
        column: {variant: {"n": len(h), "bits": base64.b64encode(np.packbits(h)).decode()} for variant, h in v.items()}
        for column, v in evaluation.hits.items()
    }
    return {f.name: getattr(evaluation, f.name) for f in fields(evaluation)} | {"hits": hits}


def unpacked(plain: dict[str, Any], columns: Collection[str]) -> Evaluation:
    """The evaluation that `packed` has packed, in the order of all tables: JSON has sorted its columns.

    Args:
        columns: that are asked for; of others only those that stand beside them are there.
    """
    asked = {*columns, *(BESIDE[c] for c in columns if c in BESIDE)}
    hits = {
        column: {
            variant: np.unpackbits(np.frombuffer(base64.b64decode(h["bits"]), np.uint8), count=h["n"]).astype(bool)
            for variant, h in plain["hits"][column].items()
        }
        for column in COLUMNS
        if column in asked and column in plain["hits"]
    }
    return Evaluation(**plain | {"hits": hits})


def rounded(value: Any) -> Any:
    """Numbers to six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: rounded(v) for name, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value
