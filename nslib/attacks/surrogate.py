"""The small CNN on which transferred attacks are made for the embedded data, and its shipped weights."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from nslib.models import weights_path
from nslib.vit.weights import read_weights

SURROGATE_CNN = "surrogate_cnn"
_WIDTHS = (24, 48, 64, 96)  # with ten classes 236,354 parameters: under 1 MB in float32


class SurrogateCNN(nn.Sequential):
    """An untrained small CNN for square images of about this size, (B, 3, size, size) in [0, 1] -> (B, num_classes).

    Plain 3 x 3 convolutions: whatever transfers to a ViT owes nothing to attention or to a grid of patches. The first
    layer, a batch norm without parameters, is the normalisation. From 96 px on the first convolution strides, so that
    the trunk sees 48 to 95 px, on which its last features take in the whole object.

    Raises:
        ValueError: size below 16, which leaves the last features without neighbours.
    """

    def __init__(self, num_classes: int, size: int):
        if size < 16:
            raise ValueError(f"size must be at least 16 px, got {size}")
        trunk = [_convolution(3, _WIDTHS[0], stride=max(1, size // 48))]
        for narrow, wide in pairwise(_WIDTHS):
            trunk += [_convolution(narrow, wide, stride=2), _convolution(wide, wide, stride=1)]
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(_WIDTHS[-1], num_classes))
        super().__init__(nn.BatchNorm2d(3, affine=False), *trunk, *head)
        self.size = size

    def identity(self) -> dict:
        """Nothing: tensors and the size of the images, for no other of which it is used, tell all."""
        return {}


def _convolution(narrow: int, wide: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(narrow, wide, kernel_size=3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()
    )


def load_surrogate(
    weights: str | Path = "shipped", *, num_classes: int = 10, size: int = 48, device: str | torch.device = "cpu"
) -> SurrogateCNN:
    """The surrogate with trained weights, in evaluation mode.

    Args:
        weights: `shipped` (ten classes, 48 px), or a file that `nslib pretrain --model surrogate_cnn` made.
    Raises:
        FileNotFoundError: no such file.
        ValueError: it is of another number of classes, or as `read_weights`.
    """
    path = weights_path(SURROGATE_CNN, weights)
    model, tensors = SurrogateCNN(num_classes, size), read_weights(path).tensors
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        told = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"{path} does not fit {SURROGATE_CNN} of {num_classes} classes ({told}): train one") from error
    return model.to(device).eval()
