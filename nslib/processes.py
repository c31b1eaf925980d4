"""Several processes as one: who am I, how many are we, and how results come together. Started by torchrun."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import torch

from nslib.runtime import pick_device


class Team(NamedTuple):
    """This process among the others. `gather` concatenates the lists of all ranks, in their order, on every rank."""

    rank: int
    world: int
    device: torch.device
    gather: Callable[[list], list]


def processes(device: str = "auto") -> Team:
    """The processes that torchrun started, or this one alone.

    Args:
        device: auto, cpu, cuda or mps; with several GPUs each rank takes its own.
    Raises:
        ValueError: the device is not there.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Team(0, 1, pick_device(device), list)
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state = PartialState(cpu=pick_device(device).type == "cpu")
    return Team(state.process_index, state.num_processes, state.device, gather_object)
