"""What every part needs from the machine: folders, devices, seeds, atomic writes, and the record of a run."""

from __future__ import annotations

import errno
import importlib
import json
import logging
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors import SafetensorError

from nslib import __version__

_PACKAGE = Path(__file__).resolve().parent
_RECORDED = ("torch", "torchvision", "timm", "numpy", "scipy")


def checkout() -> Path | None:
    """The repository that this package runs from, None when it was installed as a wheel."""
    parent = _PACKAGE.parent
    return parent if (parent / "pyproject.toml").is_file() and (parent / "paper_nb").is_dir() else None


def data_path(*parts: str) -> Path:
    """A file that ships with the package: `data/` of a checkout, `nslib/_data/` of a wheel."""
    repository = checkout()
    return (repository / "data" if repository else _PACKAGE / "_data").joinpath(*parts)


def _work_root() -> Path:
    return checkout() or Path.cwd()


def runs_path(run_name: str) -> Path:
    """Executed notebooks of a run: `runs/<run_name>`."""
    return _work_root() / "runs" / run_name


def store_path() -> Path:
    """Cached results: `$NSLIB_STORE`, else `runs/store`."""
    return Path(os.environ.get("NSLIB_STORE") or _work_root() / "runs" / "store")


def in_store(*parts: str) -> Path:
    """A file or folder of the store, whose parent is there.

    Raises:
        OSError: it cannot be made.
    """
    path = store_path().joinpath(*parts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path.parent, error) from error
    return path


def unwritable(folder: Path, error: OSError) -> OSError:
    """What to tell where a folder of the store cannot be written."""
    return OSError(f"no results can be kept in {folder} ({error}): set NSLIB_STORE to another folder")


def figures_path(run_name: str) -> Path:
    """Figures, tables and records of a run: `$NSLIB_FIGURES/<run_name>`, else `figures/<run_name>`."""
    return Path(os.environ.get("NSLIB_FIGURES") or _work_root() / "figures") / run_name


def pick_device(name: str = "auto"):
    """The torch device of this name; `auto` takes CUDA, else the CPU: Apple's MPS has no float64, and is taken by name.

    Raises:
        ValueError: the device is not there.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name).item()  # on `meta` there is nothing to read
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used here ({error}): pass auto, cpu, cuda or mps") from error
    return torch.device(name)


def generator(seed: int):
    """A CPU generator: draws on the CPU are the same whatever the device that computes."""
    import torch

    return torch.Generator().manual_seed(seed)


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Inside the block the CPU's global generator, by which torch initialises layers, starts from this seed.

    After it that goes on as if nothing had been drawn. Those of other devices are left alone.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def first_line(error: Exception) -> str:
    """What an error says, in short; its kind where it says nothing."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # torch colours some of its words
    return next(iter(plain.strip().splitlines()), type(error).__name__)


_FULL = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG")} - {None}  # Windows has no quota


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a temporary path beside `final` that takes its name only when the block ends without an error.

    A kill or a full disk leaves the old file, or none, under the final name; never half of one. Of a link what it
    points to is replaced.
    """
    final = Path(os.path.realpath(final)) if os.path.islink(final) else Path(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=final.parent, prefix=f".{final.stem}.", suffix=f".partial{final.suffix}")
        os.close(handle)
        partial = Path(name)
        try:
            yield partial
            with open(partial, "r+b") as written:  # Windows syncs no file that is open for reading alone
                os.fsync(written.fileno())
            partial.chmod(0o644)
            partial.replace(final)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:  # safetensors wraps a full disk in an error of its own
        full = isinstance(error, SafetensorError) or error.errno in _FULL
        remedy = "make room" if full else "take a folder in which files can be made"
        raise OSError(f"{final} could not be written ({error}): {remedy}; what was there before is kept") from error


def whole_files(folder: Path, pattern: str) -> list[Path]:
    """Files of a folder by a glob pattern, in the order of their names, without those that are being written."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Inside the block a library's logger tells of errors alone."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def optional(module: str, extra: str) -> ModuleType:
    """Import a library of one of the package's extras.

    Raises:
        ModuleNotFoundError: it is not installed; says what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"this needs {module}: pip install 'nslib[{extra}]'", name=module) from error


def packaged(package: str, extra: str, *parts: str) -> Path:
    """A file that ships inside a library of one of the package's extras, which is not imported.

    Raises:
        ModuleNotFoundError: the library is not installed; says what to install.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{parts[-1]} lies in {package}: pip install 'nslib[{extra}]'", name=package)
    return Path(spec.origin).parent.joinpath(*parts)


def plain_values(value: Any) -> Any:
    """A value as it comes back from JSON: dataclasses as dictionaries, tuples as lists, paths as texts."""
    return json.loads(to_json(value))


def write_text(path: Path, text: str) -> Path:
    """Write a text file atomically and return its path."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return Path(path)


def _plain(value):
    if is_dataclass(value):
        return asdict(value)
    if isinstance(value, Path):
        return value.name  # a record tells which folder by its name; where it lay is the reader's own affair
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:
        return value.item()
    raise TypeError(f"cannot record a {type(value).__name__}: convert it to numbers, strings, lists or dicts")


def to_json(value, *, indent: int | None = 1) -> str:
    """JSON of plain values, dataclasses, paths and numpy scalars, with sorted keys."""
    return json.dumps(value, default=_plain, indent=indent, sort_keys=True)


def commit() -> str:
    """The commit checked out, with `+` when tracked files but figures differ; `unknown` outside a repository."""
    repository = checkout()
    if repository is None:
        return "unknown"

    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", str(repository), *args], capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!figures")  # what a run writes itself
        return git("rev-parse", "--short=12", "HEAD").strip() + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> dict[str, str]:
    """Python's version and those of the packages on which numbers depend."""
    return {"nslib": __version__, "python": platform.python_version(), **{name: version(name) for name in _RECORDED}}


def run_record(config, **facts) -> dict:
    """What a reader needs to know how a result was made: configuration, versions, commit, hardware, time."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "config": plain_values(config),
        "versions": versions(),
        "commit": commit(),
        "hardware": {
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": gpu,
        },
        "made": datetime.now(UTC).strftime("%Y-%m-%d"),
        **facts,
    }
