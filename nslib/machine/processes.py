"""One process, several on one machine, or several machines: the same script or command, started by `torchrun`.

    torchrun --standalone --nproc-per-node 2 -m nslib finetune ...
    torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-id 1 --rdzv-endpoint HOST:29511 -m nslib ...
    accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no -m nslib finetune ...

are two processes on this machine; two on two machines, on each of which this line is given and of which HOST is one;
and two by accelerate, of which `accelerate launch --cpu` would start but one. `--device cpu` keeps all off the GPUs.
The target has to lie where every process can read it. In a notebook, in place of a call of `finetune_model`:

    def train():
        with processes() as (share, device):
            model = load_model(device=device)
            finetune_model(model, open_source(data, model), cfg, target=target, share=share)

    accelerate.notebook_launcher(train, num_processes=2)
    model = load_model()
    done = finetune_model(model, open_source(data, model), cfg, target=target)  # loads what they have made

What computes has to stand inside the `with`: the processes are forked from the notebook's. One that has used a GPU
cannot be forked into others that do, and of one that has computed in several threads the children hang if they do so
too; inside the `with` each of them computes in one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import parent_process

import torch
from torch import Tensor

from nslib.runtime import optional, pick_device

_ended: list[int] = []  # groups of this process: torch cannot make another from the same store
_PATIENCE = timedelta(days=7)  # of one process for the others: a costly attack on some images may take hours


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

    def check_agreed(self, found: str, where: object) -> None:
        """Wait for all processes, and refuse to go on where one of them has found something else.

        Raises:
            ValueError: on every process; names what each has found.
        """
        everyone = self.gather([found])
        if len(set(everyone)) > 1:
            told = ", ".join(f"process {rank} found {words}" for rank, words in enumerate(everyone))
            raise ValueError(f"at {where} {told}: give a target that all of them can read")


ALONE = Share()


def _own_gpu() -> int:
    """Which GPU is this process's."""
    rank, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if rank >= there:
        raise ValueError(f"process {rank} of this machine has no GPU of its own, there are {there}: start as many "
                         "processes as GPUs (torchrun --nproc-per-node), or pass device cpu")  # fmt: skip
    return rank


@contextmanager
def processes(device: str = "auto") -> Iterator[tuple[Share, torch.device]]:
    """This process's share of the work and its device, inside a group of processes if there are several.

    Under `torchrun` and accelerate's `notebook_launcher` accelerate makes the group: gloo on CPUs, NCCL on GPUs. The
    group ends with the block.

    Args:
        device: as `pick_device`; with several processes each takes the GPU of its local rank, or the CPU.
    Raises:
        ModuleNotFoundError: several processes, and accelerate is not installed.
        ValueError: fewer GPUs than processes on this machine.
        RuntimeError: accelerate found another number of processes than were started, or the group has ended already.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started == 1:
        yield ALONE, pick_device(device)
        return
    if _ended:
        raise RuntimeError("the group of processes ended with the first block: put all that computes into one `with`")
    accelerate = optional("accelerate", "distributed")
    if device != "cpu" and torch.cuda.is_available():  # else each would look at the first GPU, and hold memory there
        torch.cuda.set_device(_own_gpu())
    waiting = accelerate.utils.InitProcessGroupKwargs(timeout=_PATIENCE)
    accelerator = accelerate.Accelerator(cpu=pick_device(device).type != "cuda", kwargs_handlers=[waiting])
    if accelerator.num_processes != started:
        raise RuntimeError(
            f"{started} processes were started and accelerate found {accelerator.num_processes}: start with torchrun"
        )
    if parent_process() is not None and accelerator.device.type == "cpu":
        torch.set_num_threads(1)  # in a child forked by a notebook whose threads it does not have, more would hang
    try:
        mean = lambda tensor: accelerator.reduce(tensor, "mean")  # noqa: E731
        yield Share(accelerator.process_index, started, mean, accelerate.utils.gather_object), accelerator.device
    finally:
        accelerator.end_training()
        _ended.append(started)
