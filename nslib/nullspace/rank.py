"""When a singular value of stored weights counts as zero."""

from __future__ import annotations

import torch
from torch import Tensor


def zero_up_to(singular_values: Tensor, shape: tuple[int, int], *stored: torch.dtype) -> float:
    """Singular value up to which a direction of a matrix (m, n) counts as null, the weights being stored in a type.

    That of numpy.linalg.matrix_rank, the largest times max(m, n) eps, is for errors of the arithmetic, which is at
    least float32's. Weights in a shorter type have rounding errors of up to |w| eps / 2 besides, independent of each
    other; a matrix of these has a spectral norm of at most about ||W||_F eps (1 / sqrt(m) + 1 / sqrt(n)).

    Args:
        singular_values: of the matrix, the largest first.
        stored: types in which the weights are or have been; the coarsest counts.
    Source of the second bound: Davidson and Szarek 2001, Local operator theory, random matrices and Banach spaces.
    """
    eps = max(torch.finfo(dtype).eps for dtype in stored)
    arithmetic = float(singular_values[0]) * max(shape) * min(eps, torch.finfo(torch.float32).eps)
    rounding = float(singular_values.norm()) * eps * sum(side**-0.5 for side in shape)
    return max(arithmetic, rounding)
