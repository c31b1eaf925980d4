"""Several pieces of long work at a time, each in a process of its own with its part of torch's threads."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

Submit = Callable[..., Future]
KILLED = BrokenProcessPool


def threads() -> int:
    """How many torch computes with here, which knows the cores and what the environment says of them."""
    import torch  # here, for a worker may well do without

    return torch.get_num_threads()


@contextmanager
def workers(count: int) -> Iterator[Submit]:
    """How to begin a piece of work: `submit(function, *args)`, as that of an executor, up to `count` of them at a time.

    One at a time is done here and now. What a worker starts inherits its number of threads in OMP_NUM_THREADS. Workers
    end when this process does, however it ends, and when the block ends in an error. If one of them is killed, all
    pieces that are not done end in `KILLED`.
    """
    if count <= 1:
        yield _here
        return
    with _threads(max(1, threads() // count)):
        fresh = multiprocessing.get_context("spawn")  # a process that has computed in threads cannot be forked
        with ProcessPoolExecutor(count, mp_context=fresh, initializer=_end_with_parent) as pool:
            try:
                yield lambda *work: _begin(pool, *work)
                pool.shutdown()
            except BaseException:  # else the pool would first do all that it was given
                for worker in multiprocessing.active_children():
                    worker.terminate()
                raise


def _here(function: Callable, *args) -> Future:
    future = Future()
    future.set_result(function(*args))
    return future


def _begin(pool: ProcessPoolExecutor, *work) -> Future:
    try:
        return pool.submit(*work)
    except KILLED as error:
        future = Future()
        future.set_exception(error)
        return future


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _end_with_parent() -> None:
    """In a worker: end when the command does, and at once on Ctrl-C, of which the command tells alone."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=watch, daemon=True).start()
