"""What is done to the images of an update: timm's augmentations on images in [0, 1]. None is on by default."""

from __future__ import annotations

import re
from collections.abc import Sequence

import timm.data
import torch
from PIL import ImageOps
from PIL.Image import Image
from timm.data.auto_augment import augment_and_mix_transform, rand_augment_transform
from timm.data.mixup import mixup_target
from timm.data.random_erasing import RandomErasing
from timm.layers import DropPath
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from nslib.config import FinetuneConfig
from nslib.vit.staged import StagedViT

_POLICIES = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}
# timm skips parts that it does not know. Those that begin with t name a set of operations.
_SPELLING = re.compile(r"rand(-([a-z]+\d[\d.]*|tweights|t3aw?))*|augmix(-[a-z]+\d[\d.]*)*")


class Augment:
    """RandAugment or AugMix, then random erasing, then mixup or cutmix with label smoothing, as a configuration asks.

    Draws on the global generators, as timm does: call it inside `seeded`.

    Args:
        images: of a call; mixup and cutmix pair them.
    Raises:
        ValueError: `augment` names another policy than RandAugment or AugMix, or in a spelling unknown to timm, or the
            model takes no pictures; an odd number of images is to be mixed in pairs.
    """

    def __init__(self, model: StagedViT, cfg: FinetuneConfig, images: int):
        self.model, self.cfg = model, cfg
        mixes = cfg.mixup or cfg.cutmix
        if mixes and images % 2:
            raise ValueError(f"mixup and cutmix pair the images of a process's batch, got {images}: make it even")
        if cfg.augment and model.image_shape[0] not in (1, 3):
            raise ValueError(f"augment needs pictures of 1 or 3 channels, {model.name} takes {model.image_shape[0]}")
        self.policy = _policy(model, cfg.augment) if cfg.augment else None
        self.erase = RandomErasing(cfg.erasing, mode="pixel", device=model.device) if cfg.erasing else None
        self.mix = timm.data.Mixup(cfg.mixup, cfg.cutmix, label_smoothing=cfg.smoothing,
                                   num_classes=model.num_classes) if mixes else None  # fmt: skip

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] and targets: labels (B,), or shares of classes (B, K) where these are mixed."""
        if self.policy:
            images = self._by_policy(images)
        if self.erase:
            images = self._erased(images)
        if self.mix:
            images, targets = self.mix(images.clone(), labels)
            return images, targets.to(images.dtype)
        if self.cfg.smoothing:
            return images, mixup_target(labels, self.model.num_classes, 1.0, self.cfg.smoothing).to(images.dtype)
        return images, labels

    def _by_policy(self, images: Tensor) -> Tensor:
        pictures = [self.policy(to_pil_image(image)) for image in (images * 255).round().to(torch.uint8).cpu()]
        return torch.stack([pil_to_tensor(p) for p in pictures]).to(images) / 255

    def _erased(self, images: Tensor) -> Tensor:
        """timm erases with N(0, 1) noise in normalised images."""
        mean, std = self.model.mean.to(images), self.model.std.to(images)
        return (self.erase((images - mean) / std) * std + mean).clamp(0, 1)


def _policy(model: StagedViT, name: str):
    mean = tuple(round(255 * m) for m in model.mean.flatten().tolist())
    side = min(model.image_shape[1:])
    policy = None
    try:
        if _SPELLING.fullmatch(name):
            make = _POLICIES[name.split("-")[0]]
            # Lengths of translations as in timm's own training script.
            policy = make(name, {"translate_const": int(side * 0.45), "translate_pct": 0.3, "img_mean": mean})
    except (AssertionError, ValueError):
        pass
    if policy is None:
        raise ValueError(f"augment must be such as rand-m9-mstd0.5-inc1 or augmix-m3-w3, got {name!r}")
    for op in policy.ops:
        if "Posterize" in op.name:
            op.aug_fn = _posterize
    return policy


def _posterize(image: Image, bits: int, **_) -> Image:
    """At an end of its scale timm asks for 0 bits, which Pillow 13 refuses: one is the nearest."""
    return ImageOps.posterize(image, min(8, max(1, bits)))


def set_drop_path(model: StagedViT, rate: float) -> list[tuple[nn.Module, nn.Module]]:
    """Drop the residual branches of whole images at a rate that rises linearly from 0 to `rate` in the last block.

    Returns:
        the two modules that each block had in their place, for `put_drop_path`.
    Raises:
        ValueError: blocks without the two drop paths of timm's plain block.
    """
    blocks, before = model.vit.blocks, []
    for i, block in enumerate(blocks):
        if not (hasattr(block, "drop_path1") and hasattr(block, "drop_path2")):
            raise ValueError(f"drop_path must be 0 for {model.name}, whose blocks are {type(block).__name__}")
        before.append((block.drop_path1, block.drop_path2))
        drop = rate * i / max(1, len(blocks) - 1)
        block.drop_path1, block.drop_path2 = (DropPath(drop).train(block.training) for _ in range(2))
    return before


def put_drop_path(model: StagedViT, modules: Sequence[tuple[nn.Module, nn.Module]]) -> None:
    """Put in the place of each block's two drop paths what `set_drop_path` returned."""
    for block, (first, second) in zip(model.vit.blocks, modules, strict=True):
        block.drop_path1, block.drop_path2 = first, second
