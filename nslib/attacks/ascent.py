"""The gradient with which images climb a loss: on a CPU the images of a batch are dealt out over torch's threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

_AT_A_TIME = 4  # parts, at most: Python itself runs in one thread at a time


def image_gradient(loss: Callable[..., Tensor], images: Tensor, *beside: Tensor) -> Tensor:
    """The gradient (B, C, H, W) of loss(images, *beside) for the images.

    Threads that share each operation of a small model wait for each other at its end. Where each takes some images
    through the whole pass they meet once, and an attack of two threads is a fifth faster.

    Args:
        loss: a sum over images, each of which sees its own row of every argument and nothing else. On a CPU it is
            called from several threads at once, with a part of the images each.
        beside: further arguments (B, ...), for which there is no gradient.
    """
    threads = torch.get_num_threads()
    count = min(threads, len(images), _AT_A_TIME) if _divisible(images) else 1
    if count == 1:
        return _gradient(loss, images, *beside)
    parts = zip(*(tensor.chunk(count) for tensor in (images, *beside)), strict=True)
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(threads // count,)) as pool:
            return torch.cat(list(pool.map(lambda part: _gradient(loss, *part), parts)))
    finally:
        torch.set_num_threads(threads)  # a thread's number is also that of all threads that begin after it


def _divisible(images: Tensor) -> bool:
    """Not on a GPU, and not under autocast, which is a matter of the thread that asked for it."""
    return images.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def _gradient(loss: Callable[..., Tensor], images: Tensor, *beside: Tensor) -> Tensor:
    images = images.detach().requires_grad_()
    return torch.autograd.grad(loss(images, *beside), images)[0]
