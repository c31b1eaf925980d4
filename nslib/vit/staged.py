"""Vision transformers in the stages of the paper, f = f_psi . f_phi . f_theta, around timm's own methods."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Self

import torch
from timm.layers import PatchEmbed
from timm.models import VisionTransformer, checkpoint_seq
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from nslib.description import code_of, hooks_of, settings_of, short
from nslib.vit.last_block import hooked, prefix_after

EXPECTED = "expected a timm VisionTransformer whose patch embedding is one convolution, such as vit_tiny_patch16_224"


class StagedViT(nn.Module):
    """A timm VisionTransformer cut where the paper adds its noise, with the normalisation inside.

        embed               (B, C, H, W) images in [0, 1] -> (B, N, D) patch tokens          f_theta
        encode              (B, N, D) -> (B, T, D) normalised tokens of the last block       f_phi
        classify            (B, T, D) -> (B, K) logits                                       f_psi
        logits_from_tokens  classify . encode, the last block computing only what the head reads

    Tokens are taken before class token and position embedding, so noise (1, N, D) leaves the class token alone.
    `encode` keeps all T tokens, prefix tokens first, because not every head reads the class token only: distilled
    heads read two, pooled heads read all.

    Args:
        mean, std: of each channel, in units in which images lie in [0, 1].
    Raises:
        TypeError: not a VisionTransformer of timm, or its patch embedding is not one convolution of fixed size.
        ValueError: mean or std of another number of channels, or that no images in [0, 1] have; an image smaller than
            a patch.
    Source: arXiv:2403.10476, Section 3.1.
    """

    block = 0  # tokens are taken on the way to this one

    def __init__(self, vit: nn.Module, *, mean: tuple[float, ...], std: tuple[float, ...], name: str = "custom"):
        super().__init__()
        _check_architecture(vit, name)
        self.vit = vit
        self.name = name
        # What no weight and no name tells: of a model by its name the arguments of timm's that say otherwise.
        heads = [m.num_heads for m in vit.modules() if hasattr(m, "num_heads")]
        self.built = _built(vit)
        parts, values = self.built
        self.architecture: dict = {"heads": heads, "global_pool": vit.global_pool, "vit": parts, "values": values}
        self.stored_dtype: torch.dtype | None = None  # of the patch embedding in the file that weights came from
        self.classes: tuple[str, ...] = ()  # of a head that was trained on a folder of one's own: its names, in order
        channels = vit.patch_embed.proj.in_channels
        if not vit.patch_embed.num_patches:
            sizes = f"{vit.patch_embed.img_size}, a patch {vit.patch_embed.patch_size}"
            raise ValueError(f"{name} takes images {sizes}: img_size must be at least one patch")
        for key, value in (("mean", mean), ("std", std)):
            each = torch.as_tensor(value, dtype=torch.float32, device="cpu")  # also where models are made on `meta`
            if each.shape != (channels,) or not ((each >= 0) & (each <= 1)).all() or (key == "std" and not each.all()):
                raise ValueError(f"{key} must have a number in {'[0, 1]' if key == 'mean' else '(0, 1]'} for each of "
                                 f"{channels} channels, got {value}: images lie in [0, 1] here, divide what is meant "
                                 "for 0..255 by 255")  # fmt: skip
            self.register_buffer(key, torch.tensor(value, dtype=torch.float32).reshape(1, -1, 1, 1), persistent=False)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.vit.patch_embed.proj.in_channels, *self.vit.patch_embed.img_size)

    @property
    def token_shape(self) -> tuple[int, int]:
        """(N, D)."""
        return self.vit.patch_embed.num_patches, self.vit.embed_dim

    @property
    def num_classes(self) -> int:
        return self.vit.num_classes

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D).

        A matrix product with the patches cut out, to rounding what timm's convolution gives: the gradient of that for
        the images takes nine times as long on a CPU, and on a GPU torch lets it round to TF32, in which no nullspace is
        exact.

        Raises:
            ValueError: images of another number of channels or size.
        """
        stem = self.vit.patch_embed
        if images.shape[1:] != self.image_shape:
            size = ", ".join(map(str, self.image_shape))
            raise ValueError(f"{self.name} takes images (B, {size}), got {tuple(images.shape)}: resize first")
        images = (images - self.mean) / self.std
        if hooked(stem, *stem.children()):
            return stem(images)
        (rows, columns), (height, width) = stem.grid_size, stem.patch_size
        covered = images[..., : rows * height, : columns * width]
        patches = covered.unflatten(3, (columns, width)).unflatten(2, (rows, height)).permute(0, 2, 4, 1, 3, 5)
        return stem.norm(F.linear(patches.flatten(3).flatten(1, 2), stem.proj.weight.flatten(1), stem.proj.bias))

    def encode(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, T, D)."""
        return self.vit.norm(self._through(self.vit.blocks[self.block :], self._enter(tokens)))

    def classify(self, encoded: Tensor) -> Tensor:
        """(B, T, D) -> (B, K), in the type of the weights, also under autocast: losses and gaps are made of them."""
        return self.vit.forward_head(encoded).to(self.vit.patch_embed.proj.weight.dtype)

    def logits_from_tokens(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, K).

        A head that reads the class token alone needs of the last block no patch token: see `nslib.vit.last_block`.
        """
        vit = self.vit
        *blocks, last = vit.blocks[self.block :]
        if vit.global_pool != "token" or type(last) is not Block or hooked(last):
            return self.classify(self.encode(tokens))
        x = self._through(blocks, self._enter(tokens))
        return self.classify(vit.norm(prefix_after(last, x, vit.num_prefix_tokens)))

    def _through(self, blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
        """Blocks one after the other; after timm's `set_grad_checkpointing` they compute again on the way back."""
        if self.vit.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint_seq(list(blocks), x, use_reentrant=False)
        for block in blocks:
            x = block(x)
        return x

    def _enter(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, T, D), what enters block `self.block`."""
        return self.vit.norm_pre(self.vit.patch_drop(self.vit._pos_embed(tokens)))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        return self.logits_from_tokens(self.embed(images))

    def give_head(self, num_classes: int) -> None:
        """Put an untrained head of so many classes in the place of its own."""
        with self._as_built():
            self.vit.reset_classifier(num_classes)
        self.classes = ()

    def give_size(self, size: tuple[int, int]) -> None:
        """Make it take images of another (H, W) in pixels, its position embedding resampled."""
        with self._as_built():
            self.vit.set_input_size(img_size=size)

    @contextmanager
    def _as_built(self) -> Iterator[None]:
        """What is done inside the block is no change that a key has to tell, the tensors do; what was before is one."""
        before = self.built == _built(self.vit)
        yield
        self.built = _built(self.vit) if before else self.built

    def built_as(self, model: StagedViT) -> Self:
        """Take over how another model was built and read, of whose ViT this one is made; returns itself."""
        self.architecture, self.built, self.classes = model.architecture, model.built, model.classes
        self.stored_dtype = model.stored_dtype
        return self

    def identity(self) -> dict[str, Any]:
        """What no tensor tells of the computation: how it was built, and what of its own was made of it since.

        That is a class that inherits from this one, parts of the ViT put in place of others or set otherwise, and
        forward hooks.
        """
        now, kind = _built(self.vit), type(self)
        hooks = [(name, hook) for name, hook in hooks_of(self) if not _known(hook)]  # those that count change nothing
        since = {
            "vit": now[0] if now[0] != self.built[0] else "",
            "values": now[1] if now[1] != self.built[1] else "",
            "class": "" if _known(kind) else f"{kind.__module__}.{kind.__qualname__} {self._heir()}",
            "hooks": [f"{name} {short(hook)}" for name, hook in hooks],
        }
        return self.architecture | {name: told for name, told in since.items() if told}

    def _heir(self) -> str:
        """A digest of the code of a class that inherits from this one, and of the values that it has beside the ViT."""
        beside = {name: values for name, values in settings_of(self).items() if not f"{name}.".startswith("vit.")}
        beside[""] = {name: value for name, value in beside[""].items() if name not in _OWN}
        return short([code_of(type(self), StagedViT), beside])

    def check_images(self, images: Tensor) -> None:
        """Refuse what is no batch of images for this model; for the boundaries, not for inner loops.

        Raises:
            ValueError: no tensor; wrong number of dimensions, channels or size, or values outside [0, 1].
        """
        if not isinstance(images, Tensor):
            raise ValueError(f"images must be a tensor, got a {type(images).__name__}: torch.as_tensor(images)")
        want, got = self.image_shape, tuple(images.shape)
        if got[1:] != want:
            remedy = "resize first" if got[1:2] == want[:1] else f"it takes {want[0]} channels"
            remedy = "one image is a batch too, images.unsqueeze(0)" if got == want else remedy
            raise ValueError(f"images must be (B, {', '.join(map(str, want))}) for {self.name}, got {got}: {remedy}")
        if len(images) and not (images.amin() >= 0 and images.amax() <= 1):
            raise ValueError(f"images must lie in [0, 1], got [{images.amin():.3g}, {images.amax():.3g}]: the model "
                             "normalises inside, pass raw pixels / 255")  # fmt: skip

    def check_noise(self, noise: Tensor) -> None:
        """Refuse a noise that cannot be added to this model's patch tokens.

        Raises:
            ValueError: shape other than (1, N, D), or another device or dtype than the model's.
        """
        patches, width = self.token_shape
        if noise.shape != (1, patches, width):
            prefix = self.vit.num_prefix_tokens
            remedy = ": drop the class token" if prefix and noise.shape == (1, patches + prefix, width) else ""
            raise ValueError(f"noise must be (1, {patches}, {width}) for {self.name}, got {tuple(noise.shape)}{remedy}")
        weight = self.vit.patch_embed.proj.weight
        if noise.device != weight.device or noise.dtype != weight.dtype:
            have, need = f"{noise.dtype} on {noise.device}", f"{weight.dtype} on {weight.device}"
            raise ValueError(f"noise must be {need} as the model is, got {have}: use noise.to(model_device, dtype)")

    def check_learning(self) -> None:
        """Refuse what finds neither a noise nor an update: weights in half precision, and inference mode.

        Raises:
            ValueError: weights of less than 32 bits; it is called under torch.inference_mode.
        """
        if torch.is_inference_mode_enabled():
            raise ValueError("learning needs gradients: call it outside torch.inference_mode()")
        dtype = self.vit.patch_embed.proj.weight.dtype
        if dtype.itemsize < 4:
            raise ValueError(f"{self.name} has weights of {dtype}, need float32: model.float()")

    def check_frozen_use(self) -> None:
        """Refuse a model in training mode, whose dropout would make every comparison random.

        Raises:
            ValueError: the model is in training mode.
        """
        if self.training:
            raise ValueError(f"{self.name} is in training mode: call model.eval() first")


_OWN = {"name", "block", "architecture", "built", "stored_dtype", "classes"}  # of a `StagedViT`, told elsewhere


def _known(value: Any) -> bool:
    """Whether a class or function is of this package."""
    return (getattr(value, "__module__", "") or "").startswith("nslib.")


def _built(vit: nn.Module) -> tuple[str, str]:
    """How a ViT prints, and a digest of the values in its parts that do not: an eps, a scale, a function put in."""
    return repr(vit), short(settings_of(vit))


def _check_architecture(vit: nn.Module, name: str) -> None:
    if not isinstance(vit, VisionTransformer):
        raise TypeError(f"{name} is a {type(vit).__name__}: {EXPECTED}")
    own = [s for s in ("forward", "forward_features") if getattr(type(vit), s) is not getattr(VisionTransformer, s)]
    if own:
        raise TypeError(f"{name} is a {type(vit).__name__} with a {own[0]} of its own, which is never called here: put "
                        "what it does into a block, or into a class that inherits from StagedViT")  # fmt: skip
    if not vit.global_pool:
        raise TypeError(f"{name} has a head that pools no tokens: make it with global_pool='token' or 'avg'")
    stem = vit.patch_embed
    if (
        type(stem) is not PatchEmbed
        or not (type(stem.proj) is nn.Conv2d or is_parametrized(stem.proj))
        or stem.proj.kernel_size != stem.proj.stride
    ):
        kind = f"PatchEmbed of {type(stem.proj).__name__}" if type(stem) is PatchEmbed else type(stem).__name__
        raise TypeError(f"{name} has a patch embedding {kind}: {EXPECTED}")
    if not stem.flatten or stem.img_size is None:
        raise TypeError(f"{name} was made with dynamic_img_size: make it with dynamic_img_size=False, {EXPECTED}")
    if stem.dynamic_img_pad and any(side % patch for side, patch in zip(stem.img_size, stem.patch_size, strict=True)):
        raise TypeError(f"{name} pads its images to whole patches: make it with an img_size that they divide")


def check_staged(model: object) -> None:
    """Refuse a model that is not wrapped.

    Raises:
        TypeError: so it is.
    """
    if not isinstance(model, StagedViT):
        raise TypeError(f"model must be a StagedViT, got {type(model).__name__}: wrap a ViT of timm as "
                        "nslib.StagedViT(vit, mean=..., std=...)")  # fmt: skip


def renormalised(model: StagedViT, *, mean: tuple[float, ...], std: tuple[float, ...]) -> StagedViT:
    """A copy of a model behind another mean and std of each channel, in evaluation mode.

    Raises:
        ValueError: mean or std of another number of channels.
    """
    copy = StagedViT(deepcopy(model.vit), mean=mean, std=std, name=f"{model.name}_renormalised")
    return copy.built_as(model).to(model.device).eval()


@torch.no_grad()
def batched_logits(model: nn.Module, images: Tensor, *, batch: int = 32) -> Tensor:
    """Logits (B, K) of images (B, C, H, W), so many at once; on the device of the images."""
    return torch.cat([model(part) for part in images.split(batch)])


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter takes a gradient inside the block; the flags are as before after it."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
