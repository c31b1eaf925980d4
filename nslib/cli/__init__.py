"""The command line: `nslib COMMAND --help`."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path

import tyro

from nslib.cli.nullspaces import noise, nulldim
from nslib.cli.paper import notebooks, prepare, report, reproduce
from nslib.cli.pictures import disguise, fingerprint, watermark
from nslib.cli.training import evaluate, finetune, pretrain
from nslib.config import WEIGHTS
from nslib.runtime import first_line

_ALL = (reproduce, prepare, report, evaluate, finetune, pretrain, nulldim, noise, watermark, disguise, fingerprint,
        notebooks)  # fmt: skip
COMMANDS = {command.__name__: command for command in _ALL}
_PLACES = ("NSLIB_STORE", "NSLIB_FIGURES", "NSLIB_IMAGENET", "NSLIB_WEIGHTS")
# Mistakes, told as they are
_OF_USERS = (ValueError, TypeError, OSError, FloatingPointError, OverflowError, ImportError)
_OF_PEERS = ("closed by peer", "reset by peer", "DistBackendError")  # as gloo and NCCL tell that a process is gone
_SIGPIPE = getattr(signal, "SIGPIPE", 13)  # Windows has none


def main() -> int:
    """Run a command; mistakes of the user are one line, not a traceback."""
    _name_places_in_full()
    warnings.formatwarning = lambda message, *where, **_: f"nslib: {message}\n"  # a line of code tells a user nothing
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # else every kernel prints the debugger's warning
    try:
        status = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="nslib", description=__doc__)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, such as `head`, has all that it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + _SIGPIPE
    except KeyboardInterrupt:
        print("\nnslib: stopped; the same command goes on from what was saved", file=sys.stderr)
        return 128 + signal.SIGINT
    except (*_OF_USERS, RuntimeError, MemoryError) as error:
        told = _told(error)
        if os.environ.get("NSLIB_TRACEBACK") or not told:
            raise
        print(f"nslib: {told}", file=sys.stderr)
        return 2


def _told(error: Exception) -> str:
    """A mistake of the user's, want of memory, or the end of another process, in words; empty for a fault of ours.

    Torch tells want of memory by a RuntimeError, on a GPU and on the CPU in words of their own.
    """
    if isinstance(error, _OF_USERS):
        return str(error) or type(error).__name__
    if isinstance(error, MemoryError) or any(w in str(error) for w in ("out of memory", "can't allocate memory")):
        return f"out of memory: lower batch, pool or images, or take fewer --jobs ({first_line(error)})"
    if any(words in f"{type(error).__name__}: {error}" for words in _OF_PEERS):
        return f"another of the processes has stopped or cannot be reached ({first_line(error)}): its own words say why"
    return ""


def _name_places_in_full() -> None:
    """Make the folders in the environment absolute: notebooks run in a folder of their own."""
    for name in _PLACES:
        place = os.environ.get(name)
        if place and not (name == "NSLIB_WEIGHTS" and place in WEIGHTS):
            os.environ[name] = str(Path(place).expanduser().absolute())
