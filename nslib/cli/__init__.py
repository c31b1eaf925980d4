"""The command line: `nslib COMMAND --help`."""

from __future__ import annotations

import os
import signal
import sys

import tyro

from nslib.cli.nullspaces import noise, nulldim
from nslib.cli.paper import notebooks, report, reproduce
from nslib.cli.pictures import disguise, fingerprint, watermark
from nslib.cli.training import evaluate, finetune, pretrain

_ALL = (reproduce, report, evaluate, finetune, pretrain, nulldim, noise, watermark, disguise, fingerprint, notebooks)
COMMANDS = {command.__name__: command for command in _ALL}


def main() -> int:
    """Run a command; mistakes of the user are one line, not a traceback."""
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # else every kernel prints the debugger's warning
    try:
        status = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="nslib", description=__doc__)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, such as `head`, has all that it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("\nnslib: stopped; the same command goes on from what is kept", file=sys.stderr)
        return 128 + signal.SIGINT
    except (ValueError, TypeError, KeyError, OSError, FloatingPointError, ImportError) as error:
        if os.environ.get("NSLIB_TRACEBACK"):
            raise
        print(f"nslib: {error}", file=sys.stderr)
        return 2
