"""Results on disk, computed once: keyed by settings, digests of the inputs, and a version of the code that made them.

An entry is a folder `<store>/<kind>/<key>/` with `entry.json` (its key in clear, and the plain values) and
`tensors.safetensors`. It is filled under a temporary name and renamed, so that a kill leaves all of it or nothing, and
made under a lock, so that two processes that want the same result compute it once.

The state of a long run that is under way lies beside what it makes, with the settings that it was made with.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nslib.description import hooks_of, settings_of, short
from nslib.runtime import atomic_path, in_store, plain_values, to_json, unwritable

_ENTRY, _TENSORS = "entry.json", "tensors.safetensors"


def digest(value: Any) -> str:
    """Sixteen hex digits of SHA-256 over plain values or dataclasses, whatever the order of their keys."""
    return hashlib.sha256(to_json(value, indent=None).encode()).hexdigest()[:16]


def tensor_digest(*tensors: Tensor) -> str:
    """Sixteen hex digits over shape, type and bytes of tensors."""
    h = hashlib.sha256()
    for t in tensors:
        t = t.detach().cpu().contiguous()
        h.update(f"{t.dtype}{tuple(t.shape)}".encode())
        h.update(t.view(-1).view(torch.uint8).numpy())
    return h.hexdigest()[:16]


def model_digest(model: nn.Module) -> str:
    """Digest of all parameters and buffers, names included; also of those, such as mean and std, that no file holds.

    And of what no tensor tells, such as how many heads there are: of a module with a method `identity` what that says,
    of any other how it prints, and the attributes and hooks of its parts.
    """
    state = model.state_dict() | dict(model.named_buffers())
    if hasattr(model, "identity"):
        given = model.identity()
    else:
        given = {"module": repr(model), "values": short([settings_of(model), list(hooks_of(model))])}
    told = [repr(sorted(given.items()))] if given else []  # else as before there were any, for records that are kept
    return digest([sorted(state), tensor_digest(*(state[k] for k in sorted(state))), *told])


def cached(kind: str, key: dict[str, Any], compute: Callable[[], dict[str, Any]], *, version: int) -> dict[str, Any]:
    """The stored result of `compute` for this key, computed now if it is not there.

    Args:
        kind: what it is, a folder name such as `noise`.
        key: everything the result depends on: settings, `tensor_digest`s of inputs.
        compute: returns tensors and plain (JSON) values by name.
        version: of the code behind `compute`; raise it when its results change.
    Raises:
        OSError: an entry cannot be read or written; names the folder.
    """
    full_key = {"kind": kind, "version": version, **key}
    folder = in_store(kind, digest(full_key))
    if folder.is_dir():  # whole, for it was renamed; a store that may only be read has no place for a lock
        return _read(folder)
    with locked(FileLock(f"{folder}.lock")):
        if not folder.is_dir():
            for left in folder.parent.glob(f".{folder.name}.*.partial"):  # of a run that was killed while it wrote
                shutil.rmtree(left, ignore_errors=True)
            _write(folder, full_key, compute())
        return _read(folder)


def _write(folder: Path, key: dict[str, Any], values: dict[str, Any]) -> None:
    tensors = {k: v.detach().cpu().contiguous() for k, v in values.items() if isinstance(v, Tensor)}
    plain = {k: v for k, v in values.items() if k not in tensors}
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".partial"))
    try:
        (partial / _ENTRY).write_text(to_json({"key": key, "values": plain}), encoding="utf-8")
        save_file(tensors, partial / _TENSORS)
        partial.chmod(0o755)  # mkdtemp keeps it to its owner, and a store may be shared
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        raise OSError(f"result cannot be stored in {folder} ({error}): make room, or set NSLIB_STORE") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read(folder: Path) -> dict[str, Any]:
    try:
        plain = json.loads((folder / _ENTRY).read_text(encoding="utf-8"))["values"]
        return plain | load_file(folder / _TENSORS)
    except Exception as error:
        raise OSError(
            f"stored result {folder} cannot be read ({error}): remove that folder to compute it again"
        ) from error


@contextmanager
def locked(lock: FileLock, *, timeout: float = -1) -> Iterator[None]:
    """Hold a lock inside the block.

    Raises:
        Timeout: somebody else held it for so many seconds; negative: wait for ever.
        OSError: it cannot be made.
    """
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise
    except OSError as error:
        raise unwritable(Path(lock.lock_file).parent, error) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def awaited(lock: FileLock, path: Path, *, timeout: float = -1) -> Iterator[None]:
    """Hold the lock of a file inside the block, and say so where another process has to be waited for.

    Raises:
        Timeout, OSError: as `locked`.
    """
    if held(lock):
        print(f"{path} is being made by another process: waiting for it", flush=True)
    with locked(lock, timeout=timeout):
        yield


def held(lock: FileLock) -> bool:
    """Whether somebody holds a lock now."""
    try:
        with locked(lock, timeout=0):
            return False
    except Timeout:
        return True


def save_state(path: Path, settings: Any, state: dict[str, Any]) -> None:
    """Replace the saved state of a run by that of now: tensors and plain values, and beside them its settings.

    Raises:
        OSError: it cannot be written, such as on a full disk; the state saved before is kept.
    """
    buffer = io.BytesIO()  # torch reports a full disk as a RuntimeError, Python as what it is
    torch.save(state | {"settings": to_json(settings)}, buffer)
    with atomic_path(path) as partial:
        partial.write_bytes(buffer.getbuffer())


def sweep(*paths: Path) -> None:
    """Remove what a kill in the middle of writing these files has left beside them; nobody may be writing them now."""
    for path in paths:
        for left in path.parent.glob(f".{escape(path.stem)}.????????.partial.*"):  # as `atomic_path` names them
            left.unlink()


def load_state(path: Path, *, remedy: str = "remove it to start anew") -> dict[str, Any]:
    """A saved state, tensors on the CPU, with its `settings` as plain values.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        return saved | {"settings": json.loads(saved["settings"])}
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(f"saved state {path} cannot be read ({error}): {remedy}") from error


def check_same(path: Path, made: dict[str, Any], now: Any, *, remedy: str) -> None:
    """Refuse to go on with, or to replace, what was made with other settings; see `timeless`.

    Raises:
        ValueError: names the file and each difference.
    """
    told = changed_settings(timeless(made), timeless(plain_values(now)))
    if told:
        raise ValueError(f"{path} was made with other settings: {'; '.join(told)}; {remedy}")


def check_beside(target: Path, *suffixes: str) -> None:
    """Refuse to write where files of a record's or log's name lie that no run has written.

    Raises:
        ValueError: names the file.
    """
    for path in (target.with_suffix(suffix) for suffix in suffixes):
        if path.exists() and not _is_ours(path):
            raise ValueError(f"{path} is no record of a run, and would be replaced: move it, or take another name")


def _is_ours(path: Path) -> bool:
    """Whether a .json is a run's record, or a .jsonl, of which the first line is read, a run's log."""
    try:
        with open(path, encoding="utf-8") as file:
            if path.suffix == ".json":
                told, fields = json.load(file), {"config", "versions"}
            else:
                told, fields = json.loads(file.readline().strip() or '{"round": 0}'), {"round"}
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and told.keys() >= fields


def timeless(value: Any) -> Any:
    """Inputs without the `times` of image files: a copy of a data set has others, and names and sizes tell it well
    enough for a result that took hours."""
    if isinstance(value, dict):
        return {name: timeless(v) for name, v in value.items() if name != "times"}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def changed_settings(made: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Settings that are not the same, by dotted name, as `noise.lr was 0.1, is 0.02`."""
    told = []
    for name in sorted(made.keys() | now.keys()):
        old, new = made.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            told += changed_settings(old, new, f"{prefix}{name}.")
        elif old != new and name == "files" and None not in (old, new):
            told.append(f"{prefix}files: the images are others, have other names or other sizes")
        elif old != new:
            told.append(f"{prefix}{name} was {old!r}, is {new!r}")
    return told
