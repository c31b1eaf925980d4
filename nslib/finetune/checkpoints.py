"""Weights from published training checkpoints, such as EasyRobust's `.pth.tar`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nslib.models import build_model, first_line, put_weights
from nslib.staged import StagedViT

_NORMALISATION = re.compile(r"^(?:0|normalize)\.(mean|std)$")
_WRAPPERS = ("module.", "_orig_mod.")  # of torch's parallel models, and of compiled ones


class Checkpoint(NamedTuple):
    """Weights by timm's names, and the mean and std (C,) of the normalisation layer if the file has one."""

    weights: dict[str, Tensor]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


def read_checkpoint(path: str | Path, *, averaged: bool = True) -> Checkpoint:
    """Read a training checkpoint without running code that it may contain.

    Understood are a bare state dict, or one under `state_dict_ema`, `model_ema`, `state_dict` or `model`; names with
    the prefixes of torch's wrappers, or with one that all have, such as `backbone.`; and a layer `0` or `normalize`
    with the mean and std that normalise images in [0, 1].

    Args:
        averaged: take `state_dict_ema` or `model_ema` where there is one.
    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, holds objects other than tensors and plain values, holds no weights, or holds
            those of an adapter apart.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm keeps its arguments in one
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(
            f"{path} is damaged or holds more than tensors and plain values, which could run code "
            f"({first_line(error)}): open it where you trust it, and save its state dict alone"
        ) from error
    names = (*(("state_dict_ema", "model_ema") if averaged else ()), "state_dict", "model")
    state = (
        next((content[n] for n in names if isinstance(content.get(n), dict)), content)
        if isinstance(content, dict)
        else {}
    )
    state = {_without_wrappers(k): v for k, v in state.items() if isinstance(v, Tensor)}
    if not state:
        raise ValueError(f"{path} holds no weights: expected a state dict, or one under {', '.join(names)}")
    if any("lora_" in k or ".base_layer." in k for k in state):
        raise ValueError(f"{path} holds an adapter beside the weights: merge it into them first (merge_and_unload)")
    found = {m[1]: tuple(v.flatten().tolist()) for k, v in state.items() if (m := _NORMALISATION.match(k))}
    state = {k: v for k, v in state.items() if not _NORMALISATION.match(k)}
    while len(first := {k.partition(".")[0] for k in state}) == 1 and all("." in k for k in state):
        state = {_without_wrappers(k.removeprefix(f"{min(first)}.")): v for k, v in state.items()}
    return Checkpoint(state, found.get("mean"), found.get("std"))


def load_checkpoint(
    path: str | Path,
    name: str,
    *,
    averaged: bool = True,
    num_classes: int | None = None,
    img_size: int | None = None,
    device: str | torch.device = "cpu",
    **architecture,
) -> StagedViT:
    """A model with the weights of a training checkpoint, in evaluation mode.

    Mean and std are the file's own where it has a normalisation layer, else those of the model's tag.

    Args:
        name: of the architecture, `shapes_vit` or a tag of timm.
        num_classes: default: as the file's head.
    Raises:
        ValueError: the checkpoint is of another architecture, or as `read_checkpoint`.
    """
    found = read_checkpoint(path, averaged=averaged)
    model = build_model(name, num_classes=num_classes, img_size=img_size, **architecture)
    normalisation = {"mean": found.mean, "std": found.std} if found.mean and found.std else {}
    model = put_weights(model, found.weights, path, any_head=num_classes is None, normalisation=normalisation)
    return model.to(device).eval()


def _without_wrappers(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name
