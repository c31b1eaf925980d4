"""What the commands share: overrides of settings from the command line, and how a table is shown."""

from __future__ import annotations

import json
from ast import literal_eval
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

from nslib.config import WEIGHTS
from nslib.profiles import REAL, resolve
from nslib.settings import Settings

Given = tuple[tuple[str, ...], ...]  # what stands after each time that an option is given
Setting = Annotated[Given, tyro.conf.UseAppendAction, tyro.conf.arg(name="set", metavar="NAME=VALUE ...")]
Suspects = Annotated[Given, tyro.conf.UseAppendAction, tyro.conf.arg(metavar="MODEL ...")]


def settings_of(
    profile: str,
    imagenet: str,
    device: str,
    settings: Given,
    *,
    run_name: str = "",
    within: str = "",
    reads: tuple[str, ...] = ("",),
    **options,
) -> Settings:
    """What a command works with: a profile, by default the one that fits the data, with what was said otherwise.

    Args:
        imagenet: the folder of images, empty for the embedded data.
        run_name: as of `resolve`.
        settings, within, reads, options: as `overrides`.
    Raises:
        ValueError, FileNotFoundError: as `check_images`, `overrides` and `resolve`.
    """
    asked = overrides_of(profile, imagenet, device, settings, within=within, reads=reads, **options)
    return resolve(profile or ("imagenet" if imagenet else "laptop"), run_name, asked)


def overrides_of(profile: str, imagenet: str, device: str, settings: Given, **options) -> dict:
    """`overrides` with the folder of images and the device among them; arguments and errors as of `settings_of`."""
    check_images(profile, imagenet)
    return overrides(settings, data__root=imagenet, device="" if device == "auto" else device, **options)


def check_images(profile: str, imagenet: str) -> None:
    """Refuse a folder of images that is not there, and one where the profile, if one is named, would draw its own.

    Raises:
        ValueError: it would.
        FileNotFoundError: no such folder. Said here, for the model is opened before its images are.
    """
    if imagenet and profile and profile not in REAL:
        raise ValueError(f"--imagenet goes with --profile {' or '.join(REAL)}, got profile {profile!r}")
    if imagenet and not Path(imagenet).expanduser().is_dir():
        raise FileNotFoundError(f"--imagenet: no folder {imagenet}; expected one with train/ and val/ in it")


def overrides(settings: Given, *, within: str = "", reads: tuple[str, ...] = ("",), **options) -> dict:
    """`synthesis.noise.steps=100` -> {"synthesis.noise.steps": 100}; values as `_value` reads them.

    Args:
        settings: all count, whether they stand after one --set or several; of two of one name the last.
        within: the task, such as `finetune`, that all of the settings are of but those of `data`.
        reads: with what names begin that matter to the command; others are refused.
        options: further ones by full name with `__` for the dot; empty ones are left out.
    Raises:
        ValueError: one of the settings has no equals sign, or is not read.
    """
    prefix = within and f"{within}."
    chosen = {name.replace("__", "."): value for name, value in options.items() if value}
    for item in chain.from_iterable(settings):
        name, equals, text = item.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE, such as in --help, got {item!r}")
        name = name.strip()
        name = name if name.startswith(("data.", prefix)) else prefix + name  # on which images, any task may be told
        if _hint(name) and not name.startswith(reads):
            near = [part + name for part in reads if _hint(part + name)]
            told = f"take {' or '.join(near)}" if near else "leave it out"
            raise ValueError(f"{name} changes nothing of this command, which reads {', '.join(reads)}: {told}")
        chosen[name] = _value(text, _hint(name))
    return {name: _placed(name, value) for name, value in chosen.items()}


def _placed(name: str, value: Any) -> Any:
    """Paths in full: notebooks run in a folder of their own, where a relative one would lead elsewhere."""
    if name.startswith("data.") and name != "data.kind":
        return absolute(value)
    return absolute_weights(value) if name.endswith("weights") else value


def _hint(name: str) -> Any:
    """The type of a setting, None where there is none of this name."""
    hint = Settings
    for part in name.split("."):
        hint = get_type_hints(hint).get(part) if is_dataclass(hint) else None
    return hint


def _value(text: str, hint: Any) -> Any:
    """What a text means for a setting of this type; where several values are meant they are parted by commas."""
    text = text.strip()
    value = _read(text)
    if get_origin(hint) is tuple and not isinstance(value, list | tuple):
        return [_value(part, get_args(hint)[0]) for part in text.strip("[]()").split(",")]
    value = list(value) if isinstance(value, tuple) else value  # what papermill can write into a notebook
    return text if hint is str and not isinstance(value, str) else value


def _read(text: str) -> Any:
    """JSON or Python where it can be read as such, 8/255 and inf as their values, else the text itself."""
    for read in (json.loads, literal_eval, _fraction, float):
        with suppress(ValueError, SyntaxError, ZeroDivisionError):
            return read(text)
    return text


def _fraction(text: str) -> float:
    numerator, _, denominator = text.partition("/")
    return float(numerator) / float(denominator)


def absolute(path):
    """The full path of a file or folder that exists; anything else as it is."""
    if not (isinstance(path, str) and path and Path(path).expanduser().exists()):
        return path
    return str(Path(path).expanduser().resolve())


def absolute_weights(weights):
    """As `absolute`, but a word such as `pretrained` keeps its meaning where a folder of that name lies."""
    return weights if weights in WEIGHTS else absolute(weights)


def check_out(out: str, suffix: str, *, beside: str) -> Path:
    """The file to write; refused, before anything is computed, if it may bear the name of its own or another's record.

    Args:
        beside: what stands in the suffix's place in the name of its record.
    Raises:
        ValueError: it ends in another suffix.
        OSError: no file can be made in its folder.
    """
    path = Path(out).expanduser()
    if path.suffix != suffix:
        raise ValueError(f"--out must end in {suffix}, got {out}: its record goes beside it as {beside}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        raise OSError(f"--out {out} cannot be written ({error}): take a folder in which files can be made") from error


def show(table) -> None:
    """Print a table of columns, and under it a line for each that is missing."""
    absent = table.missing != ""
    print(table[~absent].drop(columns="missing").round(2).to_string(index=False))
    for row in table[absent].itertuples():
        print(f"missing {row.column}: {row.missing}")


def show_facts(out: str, facts: Mapping[str, Any]) -> None:
    """Print in a line what was found out about a file that was written."""
    print(f"{out}: " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items()))
