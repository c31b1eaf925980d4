"""Models by name, and their weights: shipped, of timm, from a file, or random."""

from __future__ import annotations

import json
import math
from difflib import get_close_matches
from pathlib import Path

import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import Tensor, nn

from nslib.runtime import data_path, drawn_from, first_line
from nslib.vit.staged import EXPECTED, StagedViT
from nslib.vit.weights import Weights, read_weights

SHAPES_VIT = "shapes_vit"  # the model that ships with the package
_SHAPES_VIT_ARCHITECTURE = dict(img_size=48, patch_size=12, embed_dim=128, depth=6, num_heads=4, num_classes=10)


def build_model(
    name: str, *, num_classes: int | None = None, img_size: int | tuple[int, int] | None = None, **kwargs
) -> StagedViT:
    """An untrained model by name: `shapes_vit` or any tag of timm; mean and std are the tag's own.

    Raises:
        ValueError: timm knows no such model.
        TypeError: it is no VisionTransformer.
    """
    given = {k: v for k, v in kwargs.items() if not k.startswith("pretrained")}
    kwargs |= {k: v for k, v in (("num_classes", num_classes), ("img_size", img_size)) if v is not None}
    if name == SHAPES_VIT:
        vit, mean, std = VisionTransformer(**(_SHAPES_VIT_ARCHITECTURE | kwargs)), (0.5,) * 3, (0.5,) * 3
    else:
        vit = _of_timm(name, kwargs)
        mean, std = (vit.pretrained_cfg[key] for key in ("mean", "std"))
    if (channels := kwargs.get("in_chans", 3)) != len(mean):  # each has the mean of the tag's
        mean, std = ((sum(values) / len(values),) * channels for values in (mean, std))
    model = StagedViT(vit, mean=mean, std=std, name=name)
    # Two tags of the same weights may differ in their activation alone.
    unusual = {type(m.act).__name__ for m in vit.modules() if hasattr(m, "act")} - {"GELU"}
    model.architecture = given | ({"activation": sorted(unusual)} if unusual else {})
    return model


def _of_timm(name: str, kwargs: dict) -> nn.Module:
    try:
        return timm.create_model(name, **kwargs)
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
        near = get_close_matches(architecture, [SHAPES_VIT, *timm.list_models(module="vision_transformer")], n=4)
        told = f"; near it: {', '.join(near)}" if near else f": take {SHAPES_VIT} or a plain ViT of timm.list_models()"
        raise ValueError(f"no model named {name!r} in timm {timm.__version__}{told}") from error


def load_model(
    name: str = SHAPES_VIT,
    weights: str | Path | None = None,
    *,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    averaged: bool = True,
    seed: int = 0,
    device: str | torch.device = "cpu",
    **architecture,
) -> StagedViT:
    """A model ready for use, in evaluation mode.

    Mean and std are the file's own where it tells them, as one that `save_weights` wrote does or a checkpoint with a
    normalisation layer, else those of the tag.

    Args:
        name: `shapes_vit`, or a full timm tag such as `vit_tiny_patch16_224.augreg_in21k_ft_in1k`.
        weights: `shipped` (default for `shapes_vit`), `pretrained` (timm's hub, default for tags), `random`, a
            safetensors file, a training checkpoint (.pth, .pt, .tar ...), or a folder that holds `<name>.safetensors`.
        num_classes: default: as the file's head, 0 where it has none, else as the tag's.
        img_size: side or (H, W) of its images in pixels, for which the position embedding is resampled as by timm;
            default: that of the weights.
        averaged: take the averaged weights of a training checkpoint that has some.
        seed: of the random initialisation, also of a head for which there are no weights.
        architecture: further arguments of timm's model, such as depth.
    Raises:
        FileNotFoundError: the weights file is missing, or nothing ships for this name.
        ValueError: the file is of another architecture, or as `read_weights`.
        ConnectionError: the hub cannot be reached.
    """
    weights = weights or ("shipped" if name == SHAPES_VIT else "pretrained")
    kwargs = dict(num_classes=num_classes, img_size=img_size, **architecture)
    with drawn_from(seed):
        model = _from_hub(name, kwargs) if str(weights) == "pretrained" else build_model(name, **kwargs)
        if str(weights) not in ("pretrained", "random"):
            path = weights_path(name, weights)
            found = read_weights(path, averaged=averaged)
            model = put_weights(model, found, path, any_head=num_classes is None, any_size=img_size is None)
    return model.to(device).eval()


def _from_hub(name: str, kwargs: dict) -> StagedViT:
    if name == SHAPES_VIT:
        raise ValueError(
            f"{SHAPES_VIT} is not on a hub: name a model that is (--model TAG), or pass weights (--weights) shipped, "
            "random or a safetensors file"
        )
    build_model(name, **kwargs)  # an unknown name is told apart from a network that is down
    try:
        model = build_model(name, **kwargs, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise ConnectionError(
            f"pretrained weights of {name} could not be fetched ({first_line(error)}): "
            f"pass weights (--weights), a safetensors file or a folder with {name}.safetensors, or 'random'"
        ) from error
    model.stored_dtype = _shortest_type(model.vit.patch_embed.proj.weight)
    return model


def _shortest_type(weight: Tensor) -> torch.dtype:
    """The type in which a hub's file must have held weights, which timm has converted: the coarsest that holds them."""
    halves = (torch.bfloat16, torch.float16)
    return next((dtype for dtype in halves if torch.equal(weight.to(dtype).to(weight), weight)), weight.dtype)


def weights_path(name: str, weights: str | Path) -> Path:
    """The file meant: `shipped`, a file, or a folder that holds `<name>.safetensors`.

    Raises:
        FileNotFoundError: it is missing, or nothing ships for this name.
    """
    if str(weights) == "shipped":
        path = data_path("checkpoints", f"{name}.safetensors")
        if not path.is_file():
            raise FileNotFoundError(f"no weights ship for {name!r}, only for {SHAPES_VIT}: pass weights (--weights), "
                                    "pretrained, a safetensors file or a folder of them")  # fmt: skip
        return path
    path = Path(weights).expanduser()
    if path.is_dir():
        path = path / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights at {path}: pass a safetensors file, a folder that holds {name}.safetensors, a training "
            "checkpoint, 'pretrained' or 'random'"
        )
    return path


def put_weights(
    model: StagedViT, found: Weights, path: str | Path, *, any_head: bool = True, any_size: bool = True
) -> StagedViT:
    """A model with the weights of a file; they are loaded into the one that is given.

    Args:
        path: of the file, for errors.
        any_head: the model takes as many classes as the head of the file has, none where it has no head.
        any_size: the model takes images of the size that the weights are for. Otherwise they are made to fit its own.
    Raises:
        ValueError: they belong to another architecture.
    """
    own_head = found.tensors.get("head.weight")
    classes = len(own_head) if own_head is not None else 0
    if any_head and classes != model.num_classes:
        model.give_head(classes)
    state = _sized(model, found, any_size)
    own = model.vit.state_dict()
    wrong = [f"{k} {tuple(v.shape)}, expected {tuple(own[k].shape)}" for k, v in state.items()
             if k in own and v.shape != own[k].shape]  # fmt: skip
    missing, unknown = own.keys() - state.keys(), state.keys() - own.keys()
    if wrong or missing or unknown:
        head = ("head.", "head_dist.")
        wrong_beyond_head = [name for name in (*wrong, *missing, *unknown) if not name.startswith(head)]
        told = [f"{len(part)} {kind} ({sorted(part)[0]})" for kind, part in
                (("missing", missing), ("unknown", unknown), ("of another shape", wrong)) if part]  # fmt: skip
        remedy = "name the model that it was made for, in Python with its img_size, or another file"
        if not (wrong_beyond_head or any_head):
            remedy = "load it without num_classes, then give it a head by nslib.models.reset_head"
        raise ValueError(f"{path} does not fit {model.name}: tensors {', '.join(told)}; {remedy}")
    model.vit.load_state_dict(state)
    model.classes = found.classes
    if found.normalisation:
        model = StagedViT(model.vit, **found.normalisation, name=model.name).built_as(model)
    model.stored_dtype = state["patch_embed.proj.weight"].dtype
    return model


def _sized(model: StagedViT, found: Weights, any_size: bool) -> dict[str, Tensor]:
    """The tensors of a file for images of the model's size, which before becomes that of the file if it may."""
    vit, position = model.vit, found.tensors.get("pos_embed")
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    comparable = position is not None and vit.pos_embed is not None and position.shape[2:] == vit.pos_embed.shape[2:]
    another_grid = comparable and position.shape[1] != vit.pos_embed.shape[1]
    size = found.img_size or (another_grid and _square_of(model, position.shape[1] - prefix))
    if not size or size == model.image_shape[1:]:
        return found.tensors
    if any_size:
        model.give_size(size)
    elif comparable:
        grid = [side // patch for side, patch in zip(size, vit.patch_embed.patch_size, strict=True)]
        fitting = resample_abs_pos_embed(position, vit.patch_embed.grid_size, grid, num_prefix_tokens=prefix)
        return found.tensors | {"pos_embed": fitting}
    return found.tensors


def _square_of(model: StagedViT, tokens: int) -> tuple[int, int] | None:
    """(H, W) of the square of whole patches of a model that makes so many tokens; None where none does."""
    rows = math.isqrt(max(tokens, 0))
    height, width = model.vit.patch_embed.patch_size
    return (rows * height, rows * width) if rows**2 == tokens > 0 else None


def reset_head(model: StagedViT, num_classes: int, *, seed: int = 0) -> None:
    """Give a model an untrained head, in place; one that has this number of classes already keeps its own, for classes
    of whatever names.

    Raises:
        ValueError: num_classes below 1.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be >= 1, got {num_classes}")
    if num_classes == model.num_classes:
        model.classes = ()
        return
    device = model.device
    with drawn_from(seed):  # on the CPU, the same for every device
        model.cpu().give_head(num_classes)
    model.to(device)


def weights_record(name: str = SHAPES_VIT) -> dict:
    """The record beside shipped weights: configuration, seed, steps, accuracy on every split, versions."""
    return json.loads(data_path("checkpoints", f"{name}.json").read_text(encoding="utf-8"))
