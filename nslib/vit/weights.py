"""Files of weights: safetensors, and training checkpoints as they are published, such as EasyRobust's `.pth.tar`."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from nslib.runtime import atomic_path, first_line
from nslib.store import check_beside
from nslib.vit.staged import StagedViT

_PICKLES = {".pt", ".pth", ".bin", ".tar", ".pkl", ".ckpt"}
_MAGIC = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")  # with which files of torch.save begin, the latter before 1.6
_LAYER = re.compile(r"^(?:0|normalize)\.(mean|std)$")  # that normalises images in [0, 1]
_WRAPPERS = ("module.", "_orig_mod.")  # of torch's parallel models, and of compiled ones
_TOLD = "nslib"  # in the metadata of a safetensors file, JSON; safetensors would put several entries in any order


class Weights(NamedTuple):
    """What a file holds: tensors by timm's names, and what else it tells, empty where it does not."""

    tensors: dict[str, Tensor]
    normalisation: dict[str, Sequence[float]]  # mean and std of each channel
    classes: tuple[str, ...] = ()  # names of a head's own classes
    img_size: tuple[int, ...] = ()  # (H, W) of its images


def read_weights(path: Path, *, averaged: bool = True) -> Weights:
    """Read a file of weights without running code that it may contain.

    Of a training checkpoint are understood: a bare state dict, or one under `state_dict_ema`, `model_ema`,
    `state_dict` or `model`; names with the prefixes of torch's wrappers, or with one that all have, such as
    `backbone.`; and, before or behind these, a layer `0` or `normalize` with the mean and std that normalise images in
    [0, 1].

    Args:
        path: a safetensors file, or what `torch.save` wrote.
        averaged: take `state_dict_ema` or `model_ema` of a checkpoint that has one.
    Raises:
        ValueError: the file is damaged, holds objects other than tensors and plain values, holds no weights, or holds
            those of an adapter apart.
    """
    return _from_checkpoint(path, averaged) if _is_checkpoint(path) else _from_safetensors(path)


def _is_checkpoint(path: Path) -> bool:
    """Whether torch wrote a file, by its name, or by its first bytes where the name tells nothing."""
    suffix = path.suffix.lower()
    if suffix in _PICKLES or suffix == ".safetensors":
        return suffix in _PICKLES
    with open(path, "rb") as file:
        return file.read(4) in _MAGIC


def _from_safetensors(path: Path) -> Weights:
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        size = os.path.getsize(path)
        raise ValueError(
            f"{path} ({size} bytes) is truncated or no safetensors file ({error}): fetch it again"
        ) from error
    told = json.loads(metadata.get(_TOLD, "{}"))
    if "normalisation" in metadata:  # as files of this package were before
        told = json.loads(metadata["normalisation"]) | {"classes": json.loads(metadata.get("classes", "[]"))}
    normalisation = {key: told[key] for key in ("mean", "std") if key in told}
    return Weights(tensors, normalisation, tuple(told.get("classes", ())), tuple(told.get("images", ())[1:]))


def _from_checkpoint(path: Path, averaged: bool) -> Weights:
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
    state = {_without_wrappers(k): v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not state:
        got = f", got {', '.join(map(str, content))}" if isinstance(content, dict) else ""
        raise ValueError(f"{path} holds no weights: expected a state dict, or one under {', '.join(names)}{got}")
    if any("lora_" in k or ".base_layer." in k for k in state):
        raise ValueError(f"{path} holds an adapter beside the weights: merge it into them first (merge_and_unload)")
    state, normalisation = _without_layer(state)
    while len(first := {k.partition(".")[0] for k in state}) == 1 and all("." in k for k in state):
        state, found = _without_layer({_without_wrappers(k.removeprefix(f"{min(first)}.")): state[k] for k in state})
        normalisation = normalisation or found
    return Weights(state, normalisation)


def _without_layer(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Sequence[float]]]:
    """A state without its normalisation layer, and the mean and std of it; as it is if it has no whole one."""
    found = {m[1]: v.flatten().tolist() for k, v in state.items() if (m := _LAYER.match(k))}
    return ({k: v for k, v in state.items() if not _LAYER.match(k)}, found) if len(found) == 2 else (state, {})


def _without_wrappers(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def told_beside(model: StagedViT) -> dict[str, list]:
    """What a loader has to know of a model that its weights do not tell: the images' shape, mean and std, and the
    names of a head's own classes."""
    normalisation = {key: getattr(model, key).flatten().tolist() for key in ("mean", "std")}
    return {"images": list(model.image_shape), **normalisation, "classes": list(model.classes)}


def save_weights(model: StagedViT, path: Path) -> None:
    """Write weights that timm loads, and `told_beside` in the file's metadata.

    Raises:
        OSError: the file cannot be written; what was there before is kept.
    """
    state = {name: w.cpu().contiguous() for name, w in model.vit.state_dict().items()}
    with atomic_path(path) as partial:
        save_file(state, partial, metadata={_TOLD: json.dumps(told_beside(model))})


def check_target(target: Path | None) -> None:
    """Refuse a file of weights to write under whose name its record and saved state would not find their own.

    Raises:
        ValueError: it does not end in .safetensors, or is a folder; or where its record and log will lie are files that
            no run has written.
    """
    if target is None:
        return
    if target.suffix != ".safetensors":
        raise ValueError(f"target must end in .safetensors, got {target}")
    if target.is_dir():
        raise ValueError(f"target must be a file, got the folder {target}")
    if not target.exists() and not target.with_suffix(".training.pt").exists():
        check_beside(target, ".json", ".jsonl")
