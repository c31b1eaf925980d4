"""CP-LRP for vision transformers: relevance that adds up to the logit, as gradient x input of a linearised model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from timm.layers import Attention, Mlp
from torch import Tensor, nn

from nslib.vit.attention_maps import unfused
from nslib.vit.staged import StagedViT, frozen


@contextmanager
def conservative(model: StagedViT) -> Iterator[StagedViT]:
    """Inside the block, gradients follow the rules of CP-LRP; outputs are as ever.

    Attention weights, the standard deviation of LayerNorm and the gate f(x) / x of activations count as constants.
    What is left is affine in the tokens, so that gradient x input, summed over tokens and over everything constant
    (biases, position embedding, prefix tokens), is the logit.

    Raises:
        TypeError: a block without timm's standard Attention and Mlp, or a head that pools by attention.
    Source: Ali et al., XAI for Transformers, ICML 2022.
    """
    _check(model)
    layers = [m for m in model.vit.modules() if isinstance(m, Attention)]
    with unfused(layers), ExitStack() as hooks:
        for module in model.vit.modules():
            if isinstance(module, nn.LayerNorm):
                hooks.enter_context(module.register_forward_hook(_constant_deviation))
            elif isinstance(module, Mlp):
                hooks.enter_context(module.act.register_forward_hook(_constant_gate))
        for layer in layers:
            hooks.enter_context(layer.attn_drop.register_forward_hook(lambda _, __, weights: weights.detach()))
        yield model


def pixel_relevance(model: StagedViT, images: Tensor, labels: Tensor) -> Tensor:
    """Relevance (B, C, H, W) of each pixel in [0, 1] for the logits of these classes (B,), with black as zero."""
    model.check_frozen_use()
    images = images.detach().clone().requires_grad_()
    with conservative(model), frozen(model), torch.enable_grad():
        chosen = model(images).gather(1, labels.unsqueeze(1)).sum()
        (gradient,) = torch.autograd.grad(chosen, images)
    return (gradient * images).detach()


def _constant_deviation(layer: nn.LayerNorm, args: tuple[Tensor], _: Tensor) -> Tensor:
    (x,) = args
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt().detach()
    scaled = centred / deviation
    if layer.weight is not None:
        scaled = scaled * layer.weight
    return scaled if layer.bias is None else scaled + layer.bias


def _constant_gate(_: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
    (x,) = args
    gate = torch.where(x == 0, 0.0, out / torch.where(x == 0, 1.0, x))
    return x * gate.detach()


def _check(model: StagedViT) -> None:
    for i, block in enumerate(model.vit.blocks):
        for part, kind in (("attn", Attention), ("mlp", Mlp), ("norm1", nn.LayerNorm)):
            found = getattr(block, part, None)
            if not isinstance(found, kind) or getattr(found, "gate", None) is not None:
                name, plain = type(found).__name__, " without a gate" if isinstance(found, kind) else ""
                raise TypeError(f"block {i} of {model.name} has {part} {name}: CP-LRP needs {kind.__name__}{plain}")
    if getattr(model.vit, "attn_pool", None) is not None:
        raise TypeError(f"{model.name} pools by attention: CP-LRP needs a class token or average pooling")
