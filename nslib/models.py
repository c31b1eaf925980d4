"""Vision transformers in the stages of the paper, f = f_psi . f_phi . f_theta, around timm's own methods."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import PatchEmbed
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from nslib.runtime import data_path

SHAPES_VIT = "shapes_vit"  # the model that ships with the package
_SHAPES_VIT_ARCHITECTURE = dict(img_size=48, patch_size=12, embed_dim=128, depth=6, num_heads=4, num_classes=10)
_EXPECTED = "expected a timm VisionTransformer whose patch embedding is one convolution, such as vit_tiny_patch16_224"
_PICKLES = {".pt", ".pth", ".bin", ".tar", ".pkl", ".ckpt"}


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
        ValueError: mean or std of another number of channels, or an image smaller than a patch.
    Source: arXiv:2403.10476, Section 3.1.
    """

    def __init__(self, vit: nn.Module, *, mean: tuple[float, ...], std: tuple[float, ...], name: str = "custom"):
        super().__init__()
        _check_architecture(vit, name)
        self.vit = vit
        self.name = name
        self.stored_dtype: torch.dtype | None = None  # of the patch embedding in the file that weights came from
        channels = vit.patch_embed.proj.in_channels
        if not len(mean) == len(std) == channels:
            raise ValueError(f"mean and std must have a number for each of {channels} channels, got {mean} and {std}")
        if not vit.patch_embed.num_patches:
            sizes = f"{vit.patch_embed.img_size}, a patch {vit.patch_embed.patch_size}"
            raise ValueError(f"{name} takes images {sizes}: img_size must be at least one patch")
        for key, value in (("mean", mean), ("std", std)):
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
        """(B, C, H, W) -> (B, N, D)."""
        return self.vit.patch_embed((images - self.mean) / self.std)

    def encode(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, T, D)."""
        return self.vit.norm(self.vit.blocks(self._enter(tokens)))

    def classify(self, encoded: Tensor) -> Tensor:
        """(B, T, D) -> (B, K)."""
        return self.vit.forward_head(encoded)

    def logits_from_tokens(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, K).

        A head that reads the class token alone needs of the last block no patch token: its MLP, two thirds of its
        work, is computed for the prefix tokens only.
        """
        vit = self.vit
        *blocks, last = vit.blocks
        if vit.global_pool != "token" or type(last) is not Block:
            return self.classify(self.encode(tokens))
        x = self._enter(tokens)
        for block in blocks:
            x = block(x)
        x = x + last.drop_path1(last.ls1(last.attn(last.norm1(x))))
        x = x[:, : vit.num_prefix_tokens]
        x = x + last.drop_path2(last.ls2(last.mlp(last.norm2(x))))
        return self.classify(vit.norm(x))

    def _enter(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, T, D), what enters the first block."""
        vit = self.vit
        return vit.norm_pre(vit.patch_drop(vit._pos_embed(tokens)))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        return self.logits_from_tokens(self.embed(images))

    def check_images(self, images: Tensor) -> None:
        """Refuse what is no batch of images for this model; for the boundaries, not for inner loops.

        Raises:
            ValueError: wrong number of dimensions, channels or size, or values outside [0, 1].
        """
        want, got = self.image_shape, tuple(images.shape)
        if got[1:] != want:
            raise ValueError(
                f"images must be (B, {', '.join(map(str, want))}) for {self.name}, got {got}: resize first"
            )
        if len(images) and not (images.amin() >= 0 and images.amax() <= 1):
            span = f"[{images.amin():.3g}, {images.amax():.3g}]"
            raise ValueError(
                f"images must lie in [0, 1], got {span}: the model normalises inside, pass raw pixels / 255"
            )

    def check_noise(self, noise: Tensor) -> None:
        """Refuse a noise that cannot be added to this model's patch tokens.

        Raises:
            ValueError: shape other than (1, N, D), or another device or dtype than the model's.
        """
        patches, width = self.token_shape
        if noise.shape != (1, patches, width):
            prefix = self.vit.num_prefix_tokens
            with_prefix = prefix and tuple(noise.shape) == (1, patches + prefix, width)
            remedy = ": drop the class token" if with_prefix else ""
            raise ValueError(f"noise must be (1, {patches}, {width}) for {self.name}, got {tuple(noise.shape)}{remedy}")
        weight = self.vit.patch_embed.proj.weight
        if noise.device != weight.device or noise.dtype != weight.dtype:
            have, need = f"{noise.dtype} on {noise.device}", f"{weight.dtype} on {weight.device}"
            raise ValueError(f"noise must be {need} as the model is, got {have}: use noise.to(model_device, dtype)")

    def check_frozen_use(self) -> None:
        """Refuse a model in training mode, whose dropout would make every comparison random.

        Raises:
            ValueError: the model is in training mode.
        """
        if self.training:
            raise ValueError(f"{self.name} is in training mode: call model.eval() first")


def _check_architecture(vit: nn.Module, name: str) -> None:
    if not isinstance(vit, VisionTransformer):
        raise TypeError(f"{name} is a {type(vit).__name__}: {_EXPECTED}")
    stem = vit.patch_embed
    if (
        type(stem) is not PatchEmbed
        or not isinstance(stem.proj, nn.Conv2d)
        or stem.proj.kernel_size != stem.proj.stride
    ):
        raise TypeError(f"{name} has a patch embedding {type(stem).__name__}: {_EXPECTED}")
    if not stem.flatten or stem.img_size is None:
        raise TypeError(f"{name} was made with dynamic_img_size: make it with a fixed img_size, {_EXPECTED}")


def renormalised(model: StagedViT, *, mean: tuple[float, ...], std: tuple[float, ...]) -> StagedViT:
    """A copy of a model behind another mean and std of each channel, in evaluation mode.

    Raises:
        ValueError: mean or std of another number of channels.
    """
    name = f"{model.name}_renormalised"
    return StagedViT(deepcopy(model.vit), mean=mean, std=std, name=name).to(model.device).eval()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter takes a gradient inside the block; the flags are as before after it."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    for p, _ in flags:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


def build_model(name: str, *, num_classes: int | None = None, img_size: int | None = None, **kwargs) -> StagedViT:
    """An untrained model by name: `shapes_vit` or any tag of timm; mean and std are the tag's own.

    Raises:
        ValueError: timm knows no such model.
        TypeError: it is no VisionTransformer.
    """
    kwargs |= {k: v for k, v in (("num_classes", num_classes), ("img_size", img_size)) if v is not None}
    if name == SHAPES_VIT:
        vit = VisionTransformer(**(_SHAPES_VIT_ARCHITECTURE | kwargs))
        return StagedViT(vit, mean=(0.5,) * 3, std=(0.5,) * 3, name=name)
    try:
        vit = timm.create_model(name, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name} cannot be made with {kwargs} ({error}): {_EXPECTED}") from error
    except RuntimeError as error:
        if "Unknown model" not in str(error) and "Invalid pretrained tag" not in str(error):
            raise
        architecture, _, tag = name.partition(".")
        if tag and timm.is_model(architecture):
            known = timm.list_pretrained(f"{architecture}.*")
            raise ValueError(
                f"{architecture} has no tag {tag!r} in timm {timm.__version__}: {', '.join(known)}"
            ) from error
        near = ", ".join(timm.list_models(f"{architecture[:12]}*", module="vision_transformer")[:4])
        raise ValueError(
            f"no model named {name!r} in timm {timm.__version__}; near it: {near or SHAPES_VIT}"
        ) from error
    cfg = vit.pretrained_cfg
    return StagedViT(vit, mean=cfg["mean"], std=cfg["std"], name=name)


def load_model(
    name: str = SHAPES_VIT,
    weights: str | Path | None = None,
    *,
    num_classes: int | None = None,
    img_size: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    **architecture,
) -> StagedViT:
    """A model ready for use, in evaluation mode.

    Args:
        name: `shapes_vit`, or a full timm tag such as `vit_tiny_patch16_224.augreg_in21k_ft_in1k`.
        weights: `shipped` (default for `shapes_vit`), `pretrained` (timm's hub, default for tags), `random`, a
            safetensors file, or a folder that holds `<name>.safetensors`.
        seed: of the random initialisation.
        architecture: further arguments of timm's model, such as depth.
    Raises:
        FileNotFoundError: the weights file is missing, or nothing ships for this name.
        ValueError: the file is no safetensors file, is truncated, or belongs to another architecture.
        ConnectionError: the hub cannot be reached.
    """
    weights = weights or ("shipped" if name == SHAPES_VIT else "pretrained")
    kwargs = dict(num_classes=num_classes, img_size=img_size, **architecture)
    if str(weights) == "pretrained":
        model = _from_hub(name, kwargs)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build_model(name, **kwargs)
        if str(weights) != "random":
            _load_weights(model, weights_path(name, weights))
    return model.to(device).eval()


def _from_hub(name: str, kwargs: dict) -> StagedViT:
    if name == SHAPES_VIT:
        raise ValueError(f"{SHAPES_VIT} is not on a hub: pass weights='shipped', 'random' or a safetensors file")
    build_model(name, **kwargs)  # an unknown name is told apart from a network that is down
    try:
        return build_model(name, **kwargs, pretrained=True)
    except (OSError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConnectionError(
            f"pretrained weights of {name} could not be fetched ({first}): "
            f"pass weights= a safetensors file or a folder with {name}.safetensors, or 'random'"
        ) from error


def weights_path(name: str, weights: str | Path) -> Path:
    """The safetensors file meant: `shipped`, a file, or a folder that holds `<name>.safetensors`.

    Raises:
        FileNotFoundError: it is missing, or nothing ships for this name.
        ValueError: it is a pickle.
    """
    if str(weights) == "shipped":
        path = data_path("checkpoints", f"{name}.safetensors")
        if not path.is_file():
            raise FileNotFoundError(f"no weights ship for {name!r}, only for {SHAPES_VIT}: pass weights='pretrained'")
        return path
    path = Path(weights).expanduser()
    if path.is_dir():
        path = path / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights at {path}: pass a safetensors file, a folder that holds {name}.safetensors, "
            "'pretrained' or 'random'"
        )
    if path.suffix in _PICKLES:
        raise ValueError(
            f"{path} is a pickle, which can run code when opened: convert it once with "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), 'weights.safetensors')"
        )
    return path


def _load_weights(model: StagedViT, path: Path) -> None:
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        size = os.path.getsize(path)
        raise ValueError(
            f"{path} ({size} bytes) is truncated or no safetensors file ({error}): fetch it again"
        ) from error
    own = model.vit.state_dict()
    wrong = [f"{k} {tuple(v.shape)}, expected {tuple(own[k].shape)}" for k, v in state.items()
             if k in own and v.shape != own[k].shape]  # fmt: skip
    missing, unknown = own.keys() - state.keys(), state.keys() - own.keys()
    if wrong or missing or unknown:
        told = [f"{len(part)} {kind} ({sorted(part)[0]})" for kind, part in
                (("missing", missing), ("unknown", unknown), ("of another shape", wrong)) if part]  # fmt: skip
        raise ValueError(
            f"{path} does not fit {model.name}: tensors {', '.join(told)}; name the model that it was made for"
        )
    model.vit.load_state_dict(state)
    model.stored_dtype = state["patch_embed.proj.weight"].dtype


def weights_record(name: str = SHAPES_VIT) -> dict:
    """The record beside shipped weights: configuration, seed, steps, accuracy on every split, versions."""
    return json.loads(data_path("checkpoints", f"{name}.json").read_text(encoding="utf-8"))
