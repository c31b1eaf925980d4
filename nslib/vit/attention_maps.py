"""Attention maps of a timm ViT as it runs: no rebuilding, no second forward pass, gradients intact."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from timm.layers import Attention
from torch import Tensor
from torch.nn import functional as F

from nslib.vit.staged import StagedViT


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
    layers = {i: standard_attention(model, i) for i in blocks}
    maps: dict[int, Tensor] = {}
    with unfused(layers.values()), ExitStack() as hooks:
        for i, layer in layers.items():
            hook = layer.attn_drop.register_forward_hook(lambda _, __, out, i=i: maps.__setitem__(i, out))
            hooks.enter_context(hook)
        yield maps


@contextmanager
def unfused(layers: Iterable[Attention]) -> Iterator[None]:
    """Inside the block these layers form their attention weights, which timm's fused attention never does."""
    fused = [(layer, layer.fused_attn) for layer in layers]
    try:
        for layer, _ in fused:
            layer.fused_attn = False
        yield
    finally:
        for layer, was in fused:
            layer.fused_attn = was


def has_maps(model: StagedViT) -> bool:
    """Whether the attention maps of all blocks can be read: they need timm's standard Attention."""
    return all(isinstance(getattr(block, "attn", None), Attention) for block in model.vit.blocks)


def standard_attention(model: StagedViT, block: int) -> Attention:
    """A block's attention.

    Raises:
        ValueError: no block of this number.
        TypeError: its attention is not timm's standard one.
    """
    depth = len(model.vit.blocks)
    if not 0 <= block < depth:
        raise ValueError(f"block must lie in 0..{depth - 1} for {model.name}, got {block}")
    layer = getattr(model.vit.blocks[block], "attn", None)
    if not isinstance(layer, Attention):
        kind = type(layer or model.vit.blocks[block]).__name__
        raise TypeError(f"block {block} of {model.name} has {kind}: expected timm's standard Attention")
    return layer


def over_patches(model: StagedViT, values: Tensor) -> Tensor:
    """Values (B, N) as a map (B, H, W), constant over each patch, and 0 on a rim of the image that no patch reaches."""
    embed, (_, height, width) = model.vit.patch_embed, model.image_shape
    rows, columns = embed.patch_size
    values = values.unflatten(1, embed.grid_size).repeat_interleave(rows, 1).repeat_interleave(columns, 2)
    return F.pad(values, (0, width - values.shape[2], 0, height - values.shape[1]))
