"""Mixed precision: matrices are multiplied in bfloat16 where the device is faster at that, weights stay float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from nslib.config import FinetuneConfig

_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")  # with one of these a CPU is two to three times as fast


def precision_of(cfg: FinetuneConfig, device: torch.device) -> str:
    """float32 or bfloat16; `auto` takes the latter where the device gains from it."""
    if cfg.precision != "auto":
        return cfg.precision
    return "bfloat16" if _gains(device) else "float32"


def attack_precision_of(cfg: FinetuneConfig, device: torch.device) -> str:
    """That of the model under the attacks of training."""
    return precision_of(cfg, device) if cfg.attack_precision == "auto" else cfg.attack_precision


def _gains(device: torch.device) -> bool:
    if device.type != "cpu":
        return device.type == "cuda"
    abilities = getattr(torch.cpu, "get_capabilities", dict)()  # torch before 2.11 cannot tell
    return any(abilities.get(name) for name in _INSTRUCTIONS)


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Autocast to bfloat16 inside the block if that is the precision, else none.

    On a CPU attention is two products and a softmax there: the way back through torch's fused one is ten times as slow
    in bfloat16 as in float32.
    """
    half = precision == "bfloat16"
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, dtype=torch.bfloat16, enabled=half))
        if half and device.type == "cpu":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield
