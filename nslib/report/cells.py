"""Tables as a page shows them: text cells, numbers to four significant digits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

DIGITS = 4


@dataclass(frozen=True)
class Cells:
    """A table as text. Empty cells are empty; `numeric` tells which columns hold nothing but numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]
    total: int  # rows before the cap


def read_cells(path: Path, *, most: int) -> Cells:
    """The first `most` rows of a CSV file.

    Raises:
        ValueError: it is no CSV file; names it.
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:  # an empty or ragged file, or bytes that are no text
        why = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as a table ({why}): run its notebook again") from error
    return cells(frame, most=most)


def cells(frame: pd.DataFrame, *, most: int) -> Cells:
    """The first `most` rows of a table, whose values may be text already."""
    texts = [[number(value) for value in frame[column]] for column in frame.columns]
    numeric = tuple(any(column) and all(_is_number(text) for text in column if text) for column in texts)
    rows = tuple(zip(*texts, strict=True))
    return Cells(tuple(map(str, frame.columns)), rows[:most], numeric, len(frame))


def number(value: object) -> str:
    """A number to four significant digits, `0.0012346` -> `0.001235`; whole ones and text as they are, no value: empty.

    Between 1e-4 and 1e7 it is written out, outside as a power of ten.
    """
    text = "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)
    if not _is_number(text) or text.lstrip("-").isdigit():
        return text
    short = float(f"{float(text):.{DIGITS - 1}e}")
    if short == 0:
        return "0"
    if not 1e-4 <= abs(short) < 1e7:
        return f"{short:.{DIGITS}g}"
    return np.format_float_positional(short, trim="-")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False
