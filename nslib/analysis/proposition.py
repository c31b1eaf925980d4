"""Proposition 1 tried out: with its three conditions, without one of them, and where it is not necessary."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from nslib.nullspace.attention import ConditionViolated, Heads, HeadsNullspace, check_conditions, proof_direction
from nslib.nullspace.heads import (
    asymmetry,
    construct_heads,
    deficient_heads,
    head_size,
    shift_invariant_heads,
    split_symmetric,
)
from nslib.runtime import generator

ALL = "all three"


def proposition_table(
    cases: Sequence[tuple[int, int]], *, inputs: int = 8, tokens: int = 16, seed: int
) -> pd.DataFrame:
    """Largest change of any head's output, float64, when the W of the proof is added to random tokens.

    W has rows of different random multiples of w, and is as large as the tokens.

    Args:
        cases: (width, number of heads).
        inputs: tensors (tokens, width) of N(0, 1) tokens.
    Returns:
        one row for each case and condition left out (`all three`, `without 1`, ...): which condition the check names,
        dimension of the heads' common nullspace, and the change; NaN where no w is orthogonal to the rows of all heads.
    """
    rows = []
    for width, num_heads in cases:
        for breaking in (None, 1, 2, 3):
            draws = generator(seed)
            heads = construct_heads(width, num_heads, generator=draws, breaking=breaking)
            named, w = violated(heads), _direction(heads)
            rows.append(
                {"width": width, "heads": num_heads, "conditions": f"without {breaking}" if breaking else ALL}
                | {"named": named, "common_dim": HeadsNullspace(heads).dim}
                | {"change": float("nan") if w is None else _change(heads, w, inputs, tokens, draws, alike=False)}
            )
    return pd.DataFrame(rows)


def remark_table(cases: Sequence[tuple[int, int]], *, seed: int) -> pd.DataFrame:
    """Remark 1: a random symmetric matrix of a head's rank, split by its eigendecomposition into Q and K.

    Returns:
        one row for each case: ||Q K^T - M|| / ||M|| (`product`), and the `asymmetry` of Q K^T.
    """
    rows = []
    for width, num_heads in cases:
        factor = torch.randn(width, head_size(width, num_heads), generator=generator(seed), dtype=torch.float64)
        signs = torch.ones(factor.shape[1], dtype=factor.dtype)
        signs[::2] = -1  # eigenvalues of both signs
        matrix = factor * signs @ factor.T
        q, k = split_symmetric(matrix, factor.shape[1])
        found = q @ k.T
        rows.append(
            {"width": width, "heads": num_heads, "product": ((found - matrix).norm() / matrix.norm()).item()}
            | {"asymmetry": asymmetry(found)}
        )
    return pd.DataFrame(rows)


def unnecessary_table(
    cases: Sequence[tuple[int, int]], *, inputs: int = 8, tokens: int = 16, seed: int
) -> pd.DataFrame:
    """Heads that violate a condition and have a W != 0 all the same: the conditions suffice, they are not necessary.

    Returns:
        one row for each case, example and W (`alike`: the same w in every row; `multiples`: different ones).
    """
    rows = []
    for width, num_heads in cases:
        draws = generator(seed)
        deficient = deficient_heads(width, num_heads, generator=draws)
        shifted, w = shift_invariant_heads(width, num_heads, generator=draws)
        examples = {"rank-deficient head": (deficient, proof_direction(deficient)), "shift of a softmax": (shifted, w)}
        for name, (heads, direction) in examples.items():
            for kind in ("alike", "multiples"):
                change = _change(heads, direction, inputs, tokens, draws, alike=kind == "alike")
                rows.append({"width": width, "heads": num_heads, "example": name, "named": violated(heads),
                             "rows_of_W": kind, "change": change})  # fmt: skip
    return pd.DataFrame(rows)


def violated(heads: Heads) -> str:
    """The first condition that heads do not meet, `1`, `2` or `3`, or `none`."""
    try:
        check_conditions(heads)
    except ConditionViolated as error:
        return str(error.condition)
    return "none"


def _direction(heads: Heads) -> Tensor | None:
    try:
        return proof_direction(heads)
    except ConditionViolated:
        return None


def _change(heads: Heads, w: Tensor, inputs: int, tokens: int, draws: torch.Generator, *, alike: bool) -> float:
    width = len(w)
    x = torch.randn(inputs, tokens, width, generator=draws, dtype=torch.float64)
    multiples = torch.randn(tokens, 1, generator=draws, dtype=torch.float64)
    if alike:
        multiples = torch.ones_like(multiples)
    return heads.change(x, multiples * w * width**0.5)
