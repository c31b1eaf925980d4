"""Mixed precision: matrices are multiplied in bfloat16 where the device is faster at that, weights stay float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from nslib.config import FinetuneConfig
from nslib.machine.processes import ALONE, Share

_ANY = [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")  # with one of these a CPU is two to three times as fast


def resolved(cfg: FinetuneConfig, device: torch.device, share: Share = ALONE) -> FinetuneConfig:
    """The configuration with float32 or bfloat16 in place of `auto`, the same on all processes.

    Updates and noises are in bfloat16 where the device of every process gains from it; attacks are as the updates.
    """
    precision = cfg.precision
    if precision == "auto":
        precision = "bfloat16" if all(share.gather([_gains(device)])) else "float32"
    attack = precision if cfg.attack_precision == "auto" else cfg.attack_precision
    return replace(cfg, precision=precision, attack_precision=attack)


def _gains(device: torch.device) -> bool:
    if device.type != "cpu":
        return device.type == "cuda"
    abilities = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch cannot tell
    return any(abilities.get(name) for name in _INSTRUCTIONS)


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Autocast to bfloat16 inside the block if that is the precision, else none.

    On a CPU attention is two products and a softmax there: the way back through torch's fused one is ten times as slow
    in bfloat16 as in float32.

    Raises:
        ValueError: neither float32 nor bfloat16.
    """
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision must be float32 or bfloat16, got {precision!r}: take that of `resolved`")
    half = precision == "bfloat16"
    kernels = SDPBackend.MATH if half else _ANY  # float32 may be asked for inside of a block in bfloat16
    attention = sdpa_kernel(kernels) if device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half), attention:
        yield
