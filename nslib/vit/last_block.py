"""What a head that reads the prefix tokens alone needs of the last block, which is little."""

from __future__ import annotations

from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F


def prefix_after(block: Block, tokens: Tensor, prefix: int) -> Tensor:
    """The first `prefix` tokens of `block(tokens)`, (B, T, D) -> (B, prefix, D), to rounding.

    The other tokens only answer: they have keys and values, but neither query nor MLP.
    """
    normalised = block.norm1(tokens)
    attend = _attention_of_prefix if _plain(block.attn) else _attention_of_all
    x = tokens[:, :prefix] + block.drop_path1(block.ls1(attend(block.attn, normalised, prefix)))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def hooked(*parts: nn.Module) -> bool:
    """Whether somebody has hung a forward hook on one of these, for which it has to be called itself."""
    return any(part._forward_hooks or part._forward_pre_hooks for part in parts)


def _plain(layer: nn.Module) -> bool:
    """Whether it is timm's own attention with one linear layer for all three and no gate.

    Without fused attention somebody looks at the weights, which then have to be those of all tokens.
    """
    own = type(layer) is Attention and type(layer.qkv) is nn.Linear and getattr(layer, "gate", None) is None
    return own and layer.fused_attn and not hooked(layer, layer.qkv)


def _attention_of_all(layer: nn.Module, tokens: Tensor, prefix: int) -> Tensor:
    return layer(tokens)[:, :prefix]


def _attention_of_prefix(layer: Attention, tokens: Tensor, prefix: int) -> Tensor:
    weight, bias, width = layer.qkv.weight, layer.qkv.bias, layer.attn_dim
    ask, answer = (None, None) if bias is None else (bias[:width], bias[width:])

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(2, (layer.num_heads, layer.head_dim)).transpose(1, 2)

    query = heads(F.linear(tokens[:, :prefix], weight[:width], ask))
    key, value = map(heads, F.linear(tokens, weight[width:], answer).chunk(2, dim=2))
    dropped = layer.attn_drop.p if layer.training else 0.0
    found = F.scaled_dot_product_attention(layer.q_norm(query), layer.k_norm(key), value, dropout_p=dropped)
    return layer.proj_drop(layer.proj(layer.norm(found.transpose(1, 2).flatten(2))))
