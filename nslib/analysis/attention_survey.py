"""Proposition 1 and real models: how near trained heads come to it, and what a whole block leaves of it."""

from __future__ import annotations

import copy
from contextlib import ExitStack

import pandas as pd
import torch
from torch import Tensor, nn

from nslib.nullspace.attention import Heads, HeadsNullspace, proof_direction
from nslib.nullspace.heads import asymmetry, construct_heads
from nslib.runtime import generator
from nslib.vit.attention_maps import standard_attention
from nslib.vit.staged import StagedViT

STAGES = ("heads", "with biases", "after LayerNorm", "block")


def read_heads(model: StagedViT, block: int) -> Heads:
    """The weights (h, D, d) of one block's attention in their own precision, biases left out.

    Raises:
        ValueError: no block of this number.
        TypeError: its attention is not timm's standard one with plain queries and keys.
    """
    attention = standard_attention(model, block)
    if not isinstance(attention.q_norm, nn.Identity) or getattr(attention, "gate", None):
        raise TypeError(
            f"block {block} of {model.name} has Attention: expected timm's standard one, without normed queries or gate"
        )
    weight = attention.qkv.weight.detach().cpu()
    return Heads(*weight.reshape(3, attention.num_heads, attention.head_dim, -1).mT.unbind())


def symmetry_table(model: StagedViT) -> pd.DataFrame:
    """How far Q K^T of each block and head is from symmetric: its `asymmetry`, and the `share` of ||A||^2 that its
    symmetric half holds, 1 / (1 + asymmetry^2)."""
    rows = []
    for block in range(len(model.vit.blocks)):
        for head, scores in enumerate(read_heads(model, block).scores):
            ratio = asymmetry(scores)
            rows.append({"model": model.name, "block": block, "head": head, "asymmetry": ratio,
                         "share": 1 / (1 + ratio**2)})  # fmt: skip
    return pd.DataFrame(rows)


def spectrum_table(model: StagedViT) -> pd.DataFrame:
    """Singular values of all heads' Q K^T, K Q^T and V^T stacked, block by block, relative to the largest.

    `null` says whether a value counts as zero by the precision of the weights: `tol` is that bound, relative as well.
    """
    tables = []
    for block in range(len(model.vit.blocks)):
        null = HeadsNullspace(read_heads(model, block))
        values = null.singular_values
        tables.append(
            pd.DataFrame({"model": model.name, "block": block, "rank": range(1, len(values) + 1),
                          "value": (values / values[0]).numpy(), "null": (values <= null.tol).numpy(),
                          "tol": null.tol / float(values[0])})
        )  # fmt: skip
    return pd.concat(tables, ignore_index=True)


@torch.no_grad()
def remains_table(model: StagedViT, images: Tensor, *, strength: float = 1.0, seed: int) -> pd.DataFrame:
    """What of a direction that heads do not see is left by biases, LayerNorm and the residual path, float64.

    In each block W, rows of different multiples of one direction w, is added to the block's tokens on these images:
    to the normalised ones that enter the attention (`heads` without biases, `with biases`), or to the block's own input
    (`after LayerNorm`: output of the heads; `block`: its whole output, which carries W itself).
    W is `strength` times as large as the tokens it is added to.

    Args:
        images: (B, C, H, W) in [0, 1].
    Returns:
        one row for each block, direction and stage with the relative change of the output. Directions: `constructed`,
        exact, the block's heads replaced by constructed ones of equal norm; `smallest`, the real heads' last singular
        direction; `random`.
    """
    judge = copy.deepcopy(model).double()
    entering = _block_inputs(judge, images.double())
    size = judge.vit.embed_dim
    draws = generator(seed)
    made = construct_heads(size, judge.vit.blocks[0].attn.num_heads, generator=draws)
    exact = proof_direction(made)
    random = torch.randn(size, generator=draws, dtype=torch.float64)
    multiples = torch.randn(entering[0].shape[1], 1, generator=draws, dtype=torch.float64)
    rows = []
    for i, (block, tokens) in enumerate(zip(judge.vit.blocks, entering, strict=True)):
        directions = {
            "constructed": (with_heads(block, made), exact),
            "smallest": (block, HeadsNullspace(read_heads(judge, i)).smallest),
            "random": (block, random),
        }
        for name, (tried, w) in directions.items():
            shift = (multiples * w).to(tokens)
            for stage, change in _responses(tried, tokens, shift / shift.norm() * strength).items():
                rows.append({"model": model.name, "block": i, "direction": name, "stage": stage, "value": change})
    return pd.DataFrame(rows)


def with_heads(block: nn.Module, heads: Heads) -> nn.Module:
    """A copy of a timm block with other query, key and value weights, scaled to the norms of its own; biases stay."""
    block = copy.deepcopy(block)
    weight = block.attn.qkv.weight
    parts = [w.mT.flatten(0, 1) for w in (heads.query, heads.key, heads.value)]  # (h d, D) each
    scaled = [new * (own.norm() / new.norm()) for new, own in zip(parts, weight.detach().cpu().chunk(3), strict=True)]
    weight.data.copy_(torch.cat(scaled))
    return block


def _block_inputs(model: StagedViT, images: Tensor) -> list[Tensor]:
    """Tokens (B, T, D) that enter each block."""
    entering: list[Tensor] = []
    with ExitStack() as hooks:
        for block in model.vit.blocks:
            hooks.enter_context(block.register_forward_pre_hook(lambda _, args: entering.append(args[0])))
        model.encode(model.embed(images.to(model.device)))  # a plain pass leaves part of the last block out
    return entering


def _responses(block: nn.Module, tokens: Tensor, shift: Tensor) -> dict[str, float]:
    """Relative change of each stage's output; `shift` (T, D) has the norm that W has relative to an image's tokens."""
    unbiased = copy.deepcopy(block.attn)
    if unbiased.qkv.bias is not None:
        unbiased.qkv.bias.zero_()
    normalised = block.norm1(tokens)
    inner, outer = shift * _length(normalised), shift * _length(tokens)
    pairs = (
        [_heads_output(unbiased, x) for x in (normalised, normalised + inner)],
        [_heads_output(block.attn, x) for x in (normalised, normalised + inner)],
        [_heads_output(block.attn, block.norm1(x)) for x in (tokens, tokens + outer)],
        [block(x) for x in (tokens, tokens + outer)],
    )
    return {s: ((b - a).norm() / a.norm()).item() for s, (a, b) in zip(STAGES, pairs, strict=True)}


def _length(tokens: Tensor) -> Tensor:
    """Root mean square over images of the norm of (T, D)."""
    return tokens.flatten(1).norm(dim=1).square().mean().sqrt()


def _heads_output(attention: nn.Module, tokens: Tensor) -> Tensor:
    """What the output projection is given: (B, T, h d)."""
    seen: list[Tensor] = []
    with attention.proj.register_forward_pre_hook(lambda _, args: seen.append(args[0])):
        attention(tokens)
    return seen[0]
