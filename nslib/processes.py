"""One process, several on one machine, or several machines: the same script, started by `torchrun`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from nslib.runtime import pick_device


@dataclass(frozen=True)
class Share:
    """Which part of the work is this process's, and how the parts come together again.

    `mean` takes a tensor of equal shape on all processes and returns their mean on all; `gather` takes a list and
    returns the lists of all, one after the other. Alone, both return their argument, and the part is the whole.
    """

    rank: int = 0
    count: int = 1
    mean: Callable[[Tensor], Tensor] = lambda tensor: tensor
    gather: Callable[[list], list] = list

    def size(self, batch: int) -> int:
        """Images of a batch that fall to this process.

        Raises:
            ValueError: the number of processes does not divide the batch: a mean of means would not be its mean.
        """
        if batch % self.count:
            raise ValueError(
                f"a batch of {batch} images cannot be shared equally by {self.count} processes: "
                f"make it a multiple of {self.count}"
            )
        return batch // self.count


ALONE = Share()


@contextmanager
def processes(device: str = "auto") -> Iterator[tuple[Share, torch.device]]:
    """This process's share of the work and its device, inside a group of processes if there are several.

    Under `torchrun` and accelerate's `notebook_launcher` accelerate makes the group: gloo on CPUs, NCCL on GPUs. The
    group ends with the block.

    Args:
        device: as `pick_device`; with several processes each takes the GPU of its local rank, or the CPU.
    Raises:
        ModuleNotFoundError: several processes, and accelerate is not installed.
        RuntimeError: accelerate found another number of processes than were started.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started == 1:
        yield ALONE, pick_device(device)
        return
    try:
        from accelerate import Accelerator
        from accelerate.utils import gather_object
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{started} processes need accelerate: pip install 'nslib[distributed]'", name="accelerate"
        ) from error
    accelerator = Accelerator(cpu=pick_device(device).type != "cuda")
    if accelerator.num_processes != started:
        raise RuntimeError(
            f"{started} processes were started and accelerate found {accelerator.num_processes}: start with torchrun"
        )
    try:
        mean = lambda tensor: accelerator.reduce(tensor, "mean")  # noqa: E731
        yield Share(accelerator.process_index, started, mean, gather_object), accelerator.device
    finally:
        accelerator.end_training()
