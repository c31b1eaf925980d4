"""Proposition 1: what can be added to the tokens of self-attention without changing the output of any head."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nslib.nullspace.rank import zero_up_to


@dataclass(frozen=True)
class Heads:
    """Weights of self-attention without biases: query, key and value, each (h, D, d) with D = h d.

    The output of head i on tokens X (N, D) is softmax(X Q_i K_i^T X^T / sqrt(d)) X V_i, (N, d).

    Raises:
        ValueError: the three differ in shape, or D is not h d.
    """

    query: Tensor
    key: Tensor
    value: Tensor

    def __post_init__(self):
        shapes = [tuple(t.shape) for t in (self.query, self.key, self.value)]
        if len(set(shapes)) != 1 or len(shapes[0]) != 3:
            raise ValueError(f"query, key and value must all be (h, D, d), got {shapes}")
        heads, width, size = shapes[0]
        if heads * size != width:
            raise ValueError(f"heads must share the width, D = h d, got D = {width}, h = {heads}, d = {size}")

    @cached_property
    def scores(self) -> Tensor:
        """Q_i K_i^T, (h, D, D)."""
        return self.query @ self.key.mT

    def double(self) -> Heads:
        """The same weights in float64 on the CPU, cut from any graph."""
        return Heads(*(w.detach().cpu().double() for w in (self.query, self.key, self.value)))

    def outputs(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) -> outputs of all heads (B, h, N, d)."""
        query, key, value = (tokens.unsqueeze(1) @ w for w in (self.query, self.key, self.value))  # (B, h, N, d)
        return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ value

    def change(self, tokens: Tensor, shift: Tensor) -> float:
        """Largest absolute change of any head's output when `shift` (N, D) is added to tokens (B, N, D)."""
        return (self.outputs(tokens + shift) - self.outputs(tokens)).abs().max().item()


class ConditionViolated(ValueError):
    """Heads that Proposition 1 says nothing about; `condition` is 1, 2 or 3."""

    def __init__(self, condition: int, told: str):
        super().__init__(f"condition {condition} is violated{told}")
        self.condition = condition


def check_conditions(heads: Heads, *, tol: float | None = None) -> None:
    """Refuse heads that do not meet the three conditions of Proposition 1, R(.) being the space of a matrix's rows:
    (1) every Q_i K_i^T is symmetric; (2) every R(V_i^T) lies inside R(Q_i K_i^T); (3) for some m != n a row of
    Q_m K_m^T is not zero and lies in R(Q_n K_n^T).

    A head whose Q_i K_i^T is zero is symmetric, has no rows to share, and meets (2) only where V_i is zero as well.

    Args:
        heads: weights of any precision; computed in float64.
        tol: relative size up to which a residue counts as rounding. Default: the square root of the machine epsilon of
            the weights' own type.
    Raises:
        ConditionViolated: a ValueError that names the first condition violated and the head.
    Source: arXiv:2403.10476, Section 3.2.
    """
    tol = torch.finfo(heads.query.dtype).eps ** 0.5 if tol is None else tol
    heads = heads.double()
    spaces = [_row_space(scores, tol) for scores in heads.scores]
    for i, (scores, value, space) in enumerate(zip(heads.scores, heads.value, spaces, strict=True)):
        asymmetry = _share(scores - scores.T, scores)
        if asymmetry > tol:
            raise ConditionViolated(1, f" by head {i}: Q K^T differs from its transpose by {asymmetry:.2g} "
                             "of its norm, expected a symmetric matrix: split one with split_symmetric")  # fmt: skip
        outside = _share(_outside(value.T, space), value)
        if outside > tol:
            raise ConditionViolated(2, f" by head {i}: {outside:.2g} of V^T lies outside the row space of "
                             "Q K^T, expected none: make V from columns of K")  # fmt: skip
    with_rows = [m for m, scores in enumerate(heads.scores) if scores.any()]
    pairs = [(_nearest_row(heads.scores[m], spaces[n], tol), m, n)
             for m in with_rows for n in range(len(spaces)) if m != n]  # fmt: skip
    if not pairs:
        raise ConditionViolated(3, ": it compares a non-zero row of one head's Q K^T with another head, got "
                         f"{len(spaces)} in all and {len(with_rows)} with such a row: take two or more")  # fmt: skip
    nearest, m, n = min(pairs)
    if nearest > tol:
        raise ConditionViolated(3, f": no row of any head's Q K^T lies in another head's row space, the "
                         f"nearest, of head {m}, is {nearest:.2g} of its norm outside that of head {n}: give one "
                         "head a row of another's, as construct_heads does, or ask HeadsNullspace, which needs no "
                         "condition")  # fmt: skip


def proof_direction(heads: Heads) -> Tensor:
    """The unit w (D,) of the proof: orthogonal to the rows of every Q_i K_i^T. Every row of W is a multiple of it.

    Computed in float64, with the tolerance of the weights' own type, and given in that type.

    Raises:
        ConditionViolated: the rows of all heads span the whole of R^D, which condition 3 excludes.
    Source: arXiv:2403.10476, Appendix A, Eqs. (9)-(11).
    """
    rows = heads.double().scores.flatten(0, 1)  # (h D, D)
    _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
    if values[-1] > zero_up_to(values, rows.shape, heads.query.dtype):
        raise ConditionViolated(
            3,
            f": the rows of Q_i K_i^T span all {rows.shape[1]} dimensions, smallest singular value {values[-1]:.2g} of "
            f"{values[0]:.2g}, so that no w is orthogonal to them: give one head a row of another's, as "
            "construct_heads does, or take HeadsNullspace(heads).smallest, the direction that they see least",
        )
    return vectors[-1].to(heads.query)


class HeadsNullspace:
    """Directions that no head sees: the nullspace of all Q_i K_i^T, K_i Q_i^T and V_i^T stacked, (h (2 D + d), D).

    It needs no symmetry, contains the proof's w where the three conditions hold, and for heads of full rank d is the
    nullspace of all Q_i^T, K_i^T and V_i^T, so that biases do not matter either.

    Args:
        heads: weights of any precision; computed in float64.
        tol: singular values up to this count as zero. Default: `zero_up_to`, by the weights' own type.
    Raises:
        ValueError: tol negative or not a number.
    """

    def __init__(self, heads: Heads, *, tol: float | None = None):
        if tol is not None and not tol >= 0:
            raise ValueError(f"tol must be >= 0, got {tol}")
        wide = heads.double()
        stacked = torch.cat([wide.scores, wide.scores.mT, wide.value.mT], dim=1).flatten(0, 1)
        _, self.singular_values, self._vectors = torch.linalg.svd(stacked, full_matrices=False)
        self.tol = zero_up_to(self.singular_values, stacked.shape, heads.value.dtype) if tol is None else tol

    @property
    def dim(self) -> int:
        return int((self.singular_values <= self.tol).sum())

    @property
    def basis(self) -> Tensor:
        """(D, dim) float64 with orthonormal columns."""
        return self._vectors[len(self._vectors) - self.dim :].T

    @property
    def smallest(self) -> Tensor:
        """The unit direction (D,) that the heads see least; null if dim > 0."""
        return self._vectors[-1]


def _row_space(matrix: Tensor, tol: float) -> Tensor:
    """Orthonormal rows (rank, D)."""
    _, values, vectors = torch.linalg.svd(matrix, full_matrices=False)
    return vectors[values > tol * values[0]]


def _share(residue: Tensor, whole: Tensor) -> float:
    """Norm of a residue relative to the whole; a zero matrix leaves none."""
    return (residue.norm() / whole.norm()).item() if whole.any() else 0.0


def _outside(rows: Tensor, space: Tensor) -> Tensor:
    return rows - rows @ space.T @ space


def _nearest_row(matrix: Tensor, space: Tensor, tol: float) -> float:
    """Smallest share of a non-zero row that lies outside a space; one row at least is not zero."""
    lengths = matrix.norm(dim=1)
    rows = matrix[lengths > tol * lengths.max()]
    return (_outside(rows, space).norm(dim=1) / rows.norm(dim=1)).min().item()
