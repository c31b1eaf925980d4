"""Attention heads made to meet the conditions of Proposition 1, to break one of them, or to do without one."""

from __future__ import annotations

import torch
from torch import Tensor

from nslib.nullspace.attention import Heads


def construct_heads(width: int, num_heads: int, *, generator: torch.Generator, breaking: int | None = None) -> Heads:
    """Random heads of full rank d, float64, that meet the three conditions of Proposition 1.

    Each head has an orthonormal basis P_i (D, d); that of head 1 holds a row of Q_0 K_0^T, which is condition 3.
    Q_i K_i^T = P_i S_i P_i^T with S_i symmetric and of both signs, split as in Remark 1, and V_i = P_i G_i.

    Args:
        breaking: leave out this condition, 1, 2 or 3, and keep the others.
    Raises:
        ValueError: fewer than two heads, a width that they do not divide, or no such condition.
    """
    size = head_size(width, num_heads)
    if breaking not in (None, 1, 2, 3):
        raise ValueError(f"breaking must be None or one of the conditions 1, 2 and 3, got {breaking!r}")
    bases = _bases(num_heads, width, size, generator)
    cores = torch.stack([_symmetric(size, generator) for _ in range(num_heads)])
    free = _gaussian(num_heads, width, size, generator=generator)
    if breaking != 3:
        left = free[0] if breaking == 1 else bases[0] @ cores[0]  # Q_0 K_0^T = left P_0^T
        bases[1] = _containing(bases[1], left[0] @ bases[0].T)
    if breaking == 1:
        query, key = free, bases
    else:
        pairs = [split_symmetric(p @ s @ p.T, size) for p, s in zip(bases, cores, strict=True)]
        query, key = (torch.stack(part) for part in zip(*pairs, strict=True))
    value = free if breaking == 2 else bases @ _gaussian(num_heads, size, size, generator=generator)
    return Heads(query, key, value)


def deficient_heads(width: int, num_heads: int, *, generator: torch.Generator) -> Heads:
    """Heads that lack condition 3 alone and still leave a w: head 0 has one dimension less than it might.

    Together the heads' row spaces are an orthonormal basis of R^D but for one vector, so that no two share a direction.

    Raises:
        ValueError: fewer than two heads, a width that they do not divide, or heads of one dimension.
    """
    size = _roomy_size(width, num_heads)
    bases = torch.linalg.qr(_gaussian(width, width, generator=generator)).Q.split(size, dim=1)
    parts = []
    for i, basis in enumerate(bases):
        used = basis[:, 1:] if i == 0 else basis
        rank = used.shape[1]
        scores = used @ _symmetric(rank, generator) @ used.T
        parts.append((*split_symmetric(scores, size), used @ _gaussian(rank, size, generator=generator)))
    return Heads(*(torch.stack(part) for part in zip(*parts, strict=True)))


def shift_invariant_heads(width: int, num_heads: int, *, generator: torch.Generator) -> tuple[Heads, Tensor]:
    """Heads that lack condition 1 alone, and a unit w (D,) with Q_i^T w = 0 and V_i^T w = 0, but K_i^T w != 0.

    With W = 1 w^T, the same w in every row, X Q_i K_i^T W^T adds one number to a whole row of scores, which softmax
    does not see. Where the rows of W are different multiples of w, it does.

    Raises:
        ValueError: fewer than two heads, a width that they do not divide, or heads of one dimension.
    """
    size = _roomy_size(width, num_heads)
    w = _gaussian(width, 1, generator=generator)
    w = w / w.norm()
    query = _gaussian(num_heads, width, size, generator=generator)
    query = query - w @ (w.T @ query)
    key = _bases(num_heads, width, size, generator)
    key[1] = _containing(key[1], query[0, 0] @ key[0].T)
    seen = key.mT @ w  # (h, d, 1): what each key makes of w
    seen = seen / seen.norm(dim=1, keepdim=True)
    mixed = _gaussian(num_heads, size, size, generator=generator)
    return Heads(query, key, key @ (mixed - seen @ (seen.mT @ mixed))), w[:, 0]


def split_symmetric(matrix: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Remark 1: Q and K, (D, size) each, whose product Q K^T is a symmetric matrix (D, D) of rank up to `size`.

    With the eigendecomposition P L P^T, Q = P |L|^(1/2) and K = P sign(L) |L|^(1/2), of the largest |L|.

    Raises:
        ValueError: the matrix is not symmetric, or of higher rank, to half the digits of its type.
    """
    tolerance = torch.finfo(matrix.dtype).eps ** 0.5
    largest = (matrix - matrix.T).abs().max()
    if largest > tolerance * matrix.abs().max():
        raise ValueError(f"matrix must be symmetric, got one that differs from its transpose by {largest:.2g}")
    values, vectors = torch.linalg.eigh(matrix)
    order = values.abs().argsort(descending=True)
    rank = int((values.abs() > tolerance * values.abs().max()).sum())
    if rank > size:
        raise ValueError(f"matrix must have rank <= {size}, the size of a head, got rank {rank}")
    values, vectors = values[order[:size]], vectors[:, order[:size]]
    root = values.abs().sqrt()
    return vectors * root, vectors * (root * values.sign())


def asymmetry(matrix: Tensor) -> float:
    """||A - A^T|| / ||A + A^T||: 0 for a symmetric matrix, near 1 for a product of independent ones, large for an
    antisymmetric matrix."""
    return ((matrix - matrix.T).norm() / (matrix + matrix.T).norm()).item()


def head_size(width: int, num_heads: int) -> int:
    """d = D / h.

    Raises:
        ValueError: fewer than two heads, which condition 3 compares, or a width that they do not divide.
    """
    if num_heads < 2:
        raise ValueError(f"num_heads must be >= 2, since condition 3 compares two heads, got {num_heads}")
    if width % num_heads:
        near = [h for h in range(2, width + 1) if width % h == 0]
        raise ValueError(f"num_heads must divide the width {width}, got {num_heads}: take one of {near}")
    return width // num_heads


def _roomy_size(width: int, num_heads: int) -> int:
    size = head_size(width, num_heads)
    if size < 2:
        raise ValueError(
            f"heads must have two dimensions or more, got {width} / {num_heads} = {size}: take fewer heads"
        )
    return size


def _gaussian(*shape: int, generator: torch.Generator) -> Tensor:
    """float64, scaled by the width so that products stay of order one."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64) / shape[-2] ** 0.5


def _bases(num_heads: int, width: int, size: int, generator: torch.Generator) -> Tensor:
    """(h, D, d) with orthonormal columns in each head."""
    return torch.linalg.qr(_gaussian(num_heads, width, size, generator=generator)).Q


def _containing(basis: Tensor, row: Tensor) -> Tensor:
    """An orthonormal basis (D, d) whose span holds `row` (D,) and all but one column of another."""
    return torch.linalg.qr(torch.cat([row.unsqueeze(1), basis[:, 1:]], dim=1)).Q


def _symmetric(size: int, generator: torch.Generator) -> Tensor:
    """(size, size) with eigenvalues of both signs, between 1/2 and 3/2 in size, so that the rank is plain."""
    values = torch.rand(size, generator=generator, dtype=torch.float64) + 0.5
    signs = torch.randint(0, 2, (size,), generator=generator) * 2 - 1
    vectors = torch.linalg.qr(_gaussian(size, size, generator=generator)).Q
    return vectors @ torch.diag(values * signs) @ vectors.T
