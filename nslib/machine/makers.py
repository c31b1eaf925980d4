"""One run at a time makes a file: a second that wants the same waits for the first, or finds it made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from nslib.machine.processes import ALONE, Share
from nslib.runtime import in_store
from nslib.store import awaited, digest, held, locked


def _lock_of(target: Path) -> FileLock:
    return FileLock(in_store("makers", f"{digest(str(target.resolve()))}.lock"))  # beside the target it would stay


def being_made(target: Path | None) -> bool:
    """Whether a run is making this target now."""
    return target is not None and held(_lock_of(target))


@contextmanager
def only_maker(target: Path | None, share: Share = ALONE, *, patience: float = -1) -> Iterator[None]:
    """One run at a time makes a target: a second with the same store waits, says so, and finds it made or goes on.

    Of several processes the first holds the lock for all.

    Args:
        patience: seconds to wait for another run; negative: for ever.
    Raises:
        ValueError: another run is still at it after these, or this one has several processes, which cannot wait for
            hours: their communication times out.
    """
    if target is None or share.rank:
        yield
        return
    lock = _lock_of(target)
    alone = share.count == 1
    holding = awaited(lock, target, timeout=patience) if alone else locked(lock, timeout=1)  # `held` takes it shortly
    with ExitStack() as stack:
        try:
            stack.enter_context(holding)
        except Timeout:
            raise ValueError(f"{target} is being made by another run: wait for its end, then start again") from None
        yield
