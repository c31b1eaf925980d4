"""Attention maps of a timm ViT as it runs: no rebuilding, no second forward pass, gradients intact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from timm.layers import Attention
from torch import Tensor

from nslib.staged import StagedViT


@contextmanager
def attention_maps(model: StagedViT, blocks: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """After each forward pass inside the block, the dictionary holds (B, heads, T, T) of these blocks, by number.

    Rows are queries and sum to 1, columns are keys, prefix tokens first. timm's fused attention never forms this
    matrix, so it is switched off for these blocks meanwhile; the other path hands the matrix to a dropout, whose
    output is read.

    Raises:
        ValueError: no block of this number.
        TypeError: a block whose attention is not timm's standard one.
    """
    layers = {i: _attention(model, i) for i in blocks}
    maps: dict[int, Tensor] = {}
    fused = {i: layer.fused_attn for i, layer in layers.items()}
    hooks = []
    try:
        for i, layer in layers.items():
            layer.fused_attn = False
            hooks.append(layer.attn_drop.register_forward_hook(lambda _, __, out, i=i: maps.__setitem__(i, out)))
        yield maps
    finally:
        for hook in hooks:
            hook.remove()
        for i, layer in layers.items():
            layer.fused_attn = fused[i]


def has_maps(model: StagedViT) -> bool:
    """Whether the attention maps of all blocks can be read: they need timm's standard Attention."""
    return all(isinstance(getattr(block, "attn", None), Attention) for block in model.vit.blocks)


def _attention(model: StagedViT, block: int) -> Attention:
    depth = len(model.vit.blocks)
    if not 0 <= block < depth:
        raise ValueError(f"block must lie in 0..{depth - 1} for {model.name}, got {block}")
    layer = getattr(model.vit.blocks[block], "attn", None)
    if not isinstance(layer, Attention):
        kind = type(layer or model.vit.blocks[block]).__name__
        raise TypeError(f"block {block} of {model.name} has {kind}: attention maps need timm's standard Attention")
    return layer
