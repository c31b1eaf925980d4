"""Models by name, and their weights: shipped, of timm, from a file, or random."""

from __future__ import annotations

import json
import os
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import VisionTransformer

from nslib.runtime import data_path
from nslib.staged import EXPECTED, StagedViT

SHAPES_VIT = "shapes_vit"  # the model that ships with the package
_SHAPES_VIT_ARCHITECTURE = dict(img_size=48, patch_size=12, embed_dim=128, depth=6, num_heads=4, num_classes=10)
_PICKLES = {".pt", ".pth", ".bin", ".tar", ".pkl", ".ckpt"}


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
        raise TypeError(f"{name} cannot be made with {kwargs} ({error}): {EXPECTED}") from error
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
