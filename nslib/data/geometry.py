"""The ten shape classes as signed-distance functions of unit coordinates: negative inside, about 1 in radius.

Only operations that IEEE rounds exactly (+, *, /, sqrt, min, max, abs, floor) are used, one torch call each, so that
vectorised and scalar code, CPU and GPU give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def sin_turns(t: Tensor) -> Tensor:
    """sin(2 pi t) within .0011, by a corrected parabola: exact operations where torch.sin is not."""
    x = t - torch.floor(t + 0.5)
    y = x * 8 - x * x.abs() * 16
    return (y * y.abs() - y) * 0.225 + y


def cos_turns(t: Tensor) -> Tensor:
    """cos(2 pi t), as `sin_turns`."""
    return sin_turns(t + 0.25)


def length(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean length of (x, y), its root rounded exactly.

    torch.sqrt is not exact on a CPU, where MKL is behind it: a unit in the last place off in one value of 200, and by
    thousands in the first call of a process with threads, which may take a kernel meant for speed (pytorch's issue
    188792). numpy's is the processor's own.
    """
    square = x * x + y * y
    return torch.from_numpy(np.sqrt(square.numpy())) if square.device.type == "cpu" else torch.sqrt(square)


def _box(x: Tensor, y: Tensor, a: float, b: float) -> Tensor:
    return torch.maximum(x.abs() - a, y.abs() - b)


def _five_edges(x: Tensor, y: Tensor) -> list[Tensor]:
    """Signed distances to five lines through the origin whose normals point to a pentagon's edges."""
    angles = ((0.0, -1.0), (0.951057, -0.309017), (-0.951057, -0.309017), (0.587785, 0.809017), (-0.587785, 0.809017))
    return [x * nx + y * ny for nx, ny in angles]


def disk(x, y):
    return length(x, y) - 0.8


def square(x, y):
    return _box(x, y, 0.7, 0.7)


def triangle(x, y):
    return torch.maximum(x.abs() * 0.866025 + y * 0.5, -y) - 0.5


def pentagon(x, y):
    first, *rest = _five_edges(x, y)
    for edge in rest:
        first = torch.maximum(first, edge)
    return first - 0.75


def star(x, y):
    """A pentagram: the points that lie outside at most one of five half-planes, so the second largest distance."""
    first, second, *rest = _five_edges(x, y)
    top, runner_up = torch.maximum(first, second), torch.minimum(first, second)
    for edge in rest:
        runner_up = torch.maximum(runner_up, torch.minimum(top, edge))
        top = torch.maximum(top, edge)
    return runner_up - 0.34


def cross(x, y):
    return torch.minimum(_box(x, y, 0.9, 0.28), _box(x, y, 0.28, 0.9))


def ring(x, y):
    return (length(x, y) - 0.66).abs() - 0.2


def crescent(x, y):
    return torch.maximum(length(x, y) - 0.85, 0.72 - length(x - 0.42, y))


def heart(x, y):
    """A square and, on two adjoining sides of it, two half discs."""
    x, y = x + 0.2, y + 0.2
    lobes = torch.minimum(length(x - 0.5, y), length(x, y - 0.5)) - 0.5
    return torch.minimum(_box(x, y, 0.5, 0.5), lobes)


def arrow(x, y):
    head = torch.maximum((x - 0.95) * 0.607 + y.abs() * 0.795, 0.1 - x)
    return torch.minimum(head, _box(x + 0.35, y, 0.55, 0.18))


SHAPES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    disk,
    square,
    triangle,
    pentagon,
    star,
    cross,
    ring,
    crescent,
    heart,
    arrow,
)
CLASSES = tuple(shape.__name__ for shape in SHAPES)


def by_kind(kind: Tensor, functions: tuple[Callable, ...], *args: Tensor) -> Tensor:
    """Evaluate functions[kind[b]] on row b of every argument: each function once, on its own rows only."""
    out = torch.empty_like(args[0])
    for k, function in enumerate(functions):
        rows = torch.nonzero(kind == k).squeeze(1)
        if len(rows):
            out[rows] = function(*(a[rows] for a in args))
    return out
