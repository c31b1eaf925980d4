"""MKL behind torch's elementwise functions on a CPU."""

import torch

_FUNCTIONS = (torch.exp, torch.expm1, torch.log, torch.log1p, torch.sin, torch.cos, torch.sqrt, torch.tanh, torch.erf)


def settle() -> None:
    """Have MKL choose the kernels of its functions now, on one thread.

    It chooses at a function's first call. Where several threads come first, one may take a kernel that is thousands of
    units off in the last place, for this call alone (pytorch's issue 188792), and no run is the same bit for bit.
    """
    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype, device="cpu")
        for function in _FUNCTIONS:
            function(one)
