"""Table 1 and Figure 2: the nullspace of patch embeddings, and what a model makes of noise from it."""

from __future__ import annotations

import copy
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from nslib.models import load_model
from nslib.nullspace.patch import PatchNullspace
from nslib.runtime import data_path
from nslib.vit.staged import StagedViT, batched_logits


def table1(weights: str) -> pd.DataFrame:
    """The eight models of Table 1: null dimension found beside the one printed.

    `source` says which weights a row was measured on: pretrained if they were asked for and can be had, else random
    ones of the same architecture. Random weights decide a dimension only where C P^2 differs from D: base/16 is square,
    and its printed 2 is a property of trained weights.
    """
    printed = pd.read_csv(data_path("reference", "table1.csv"))
    rows = []
    for row in printed.itertuples():
        model, source = _best_weights(row.model, weights)
        null = PatchNullspace(model)
        decides = source == "pretrained" or null.matrix.shape[0] != null.matrix.shape[1]
        rows.append(
            {"size": row.size, "patch_size": row.patch_size, "embed_dim": row.embed_dim, "pixels": null.matrix.shape[1]}
            | {"source": source, "null_dim": null.dim, "printed": row.null_dim, "decides": decides}
        )
    return pd.DataFrame(rows)


def _best_weights(name: str, weights: str) -> tuple[StagedViT, str]:
    in_folder = (Path(weights).expanduser() / f"{name}.safetensors").is_file()
    if weights == "pretrained" or in_folder:
        try:
            return load_model(name, weights), "pretrained"
        except ConnectionError:
            pass  # said in the table's column `source`
    return load_model(name, "random", depth=1), "random"


def amplitude_sweep(
    model: StagedViT, null: PatchNullspace, images: Tensor, amplitudes: tuple[float, ...], *, generator: torch.Generator
) -> pd.DataFrame:
    """Largest change of a logit under nullspace noise, and under noise of equal norm from the complement.

    Args:
        images: (B, C, H, W) in [0, 1].
        amplitudes: largest absolute pixel of the nullspace noise.
    Returns:
        one row for each amplitude, kind of noise (nullspace, complement) and precision (32, 64 bits).
    """
    shape = images.shape
    direction = null.sample(len(images), peak=1.0, generator=generator, dtype=torch.float64)
    _, other = null.project(torch.randn(shape, generator=generator, dtype=torch.float64))
    other = other * (direction.flatten(1).norm(dim=1) / other.flatten(1).norm(dim=1)).reshape(-1, 1, 1, 1)
    rows = []
    for bits, dtype in ((32, torch.float32), (64, torch.float64)):
        judge = copy.deepcopy(model).to(dtype)
        clean = batched_logits(judge, images.to(dtype), batch=64)
        for peak in amplitudes:
            for kind, noise in (("nullspace", direction), ("complement", other)):
                noisy = batched_logits(judge, images.to(dtype) + (noise * peak).to(images.device, dtype), batch=64)
                rows.append({"peak": peak, "noise": kind, "bits": bits, "value": (noisy - clean).abs().max().item(),
                             "match": (noisy.argmax(1) == clean.argmax(1)).float().mean().item()})  # fmt: skip
    return pd.DataFrame(rows)


def token_change(model: StagedViT, images: Tensor, noise: Tensor) -> float:
    """Largest change of a token in float64 under image noise (B, C, H, W), relative to the largest token."""
    judge = copy.deepcopy(model).double()
    with torch.inference_mode():
        clean, noisy = (judge.embed(x.double()) for x in (images, images.double() + noise.to(images.device)))
        return ((noisy - clean).abs().max() / clean.abs().max()).item()
