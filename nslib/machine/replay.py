"""A computation that is repeated on a GPU with tensors of the same shapes: recorded once, then started as a whole.

In the pass of a small network a GPU waits longer for Python to start each kernel than it computes; a CUDA graph starts
all of them at once. What Python does beside the kernels, such as hooks, is done at the recording only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor


class Counter(Protocol):
    """Something that counts in hooks what passes through a model, as `nslib.finetune.cost.Meter`."""

    passes: int


_counters: list[Counter] = []


@contextmanager
def counting(counter: Counter) -> Iterator[None]:
    """Inside the block every replay adds to the counter what its recording would have added."""
    _counters.append(counter)
    try:
        yield
    finally:
        _counters.remove(counter)


class Recorded:
    """`compute(*inputs)` as a CUDA graph. Calling it gives the same tensors each time, with new values in them.

    What the function reads besides its inputs is read anew at each call, from where it lay at the recording.

    Args:
        compute: no number of it may be asked for in Python, nor may a shape depend on one.
        inputs: of the shapes of all later calls, on the GPU.
    """

    def __init__(self, compute: Callable[..., tuple[Tensor, ...]], *inputs: Tensor):
        self.inputs = [given.clone() for given in inputs]
        counters = list(_counters)
        before = [counter.passes for counter in counters]
        with torch.cuda.device(self.inputs[0].device):  # streams and graphs are those of the current GPU
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):  # libraries take their memory in the first calls, which cannot be recorded
                for _ in range(2):
                    warm = [counter.passes for counter in counters]
                    compute(*self.inputs)
            torch.cuda.current_stream().wait_stream(aside)
            self.counts = [(counter, counter.passes - w) for counter, w in zip(counters, warm, strict=True)]
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.outputs = compute(*self.inputs)
        for counter, passes in zip(counters, before, strict=True):
            counter.passes = passes  # to record is no pass of the search

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        with torch.cuda.device(self.inputs[0].device):
            self.graph.replay()
        for counter, passes in self.counts:
            counter.passes += passes
        return self.outputs
