"""What the commands share: overrides of settings from the command line, and how a table is shown."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import tyro

Setting = Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="NAME=VALUE")]


def overrides(settings: tuple[str, ...], **options: str) -> dict:
    """`synthesis.noise.steps=100` -> {"synthesis.noise.steps": 100}; values as `_value` reads them."""
    chosen = {name.replace("__", "."): value for name, value in options.items() if value}
    for item in settings:
        name, equals, text = item.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE such as images=500, got {item!r}")
        chosen[name] = _value(text)
    # Notebooks run in a folder of their own, where a relative path would lead elsewhere.
    return {k: absolute(v) if k.startswith("data.") or k.endswith("weights") else v for k, v in chosen.items()}


def _value(text: str):
    """JSON where it can be read as such, a fraction such as 8/255 as its value, else the text itself."""
    if re.fullmatch(r"\d+/[1-9]\d*", text):
        return float(Fraction(text))
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def absolute(path):
    """The full path of a file or folder that exists; anything else as it is."""
    if not (isinstance(path, str) and path and Path(path).expanduser().exists()):
        return path
    return str(Path(path).expanduser().resolve())


def show(table) -> None:
    """Print a table of columns, and under it a line for each that is missing."""
    absent = table.missing != ""
    print(table[~absent].drop(columns="missing").round(2).to_string(index=False))
    for row in table[absent].itertuples():
        print(f"missing {row.column}: {row.missing}")
