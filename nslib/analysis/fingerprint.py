"""Section 6: the nullspace of the patch embedding is a fingerprint of a set of weights, kept as a key."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nslib.intervals import share_estimate
from nslib.nullspace.membership import permute
from nslib.nullspace.patch import PatchNullspace
from nslib.runtime import atomic_path
from nslib.vit.staged import StagedViT

THRESHOLD = 0.01  # of `leak`: below it, weights are said to be of the key's model
_REMEDY = "make one with `nslib fingerprint --key PATH --model TAG`, or write_key(path, make_key(model))"


def make_key(model: StagedViT) -> Tensor:
    """The key: an orthonormal basis (C P P, R) of the nullspace of a model's patch embedding, float64, in pixels.

    Raises:
        ValueError: the nullspace is trivial, so that there is nothing to keep.
    """
    null = PatchNullspace(model)
    null.check_not_trivial()
    return null.basis


def write_key(path: str | Path, key: Tensor) -> Path:
    """Save a key as a safetensors file, atomically."""
    path = Path(path).expanduser()
    with atomic_path(path) as partial:
        save_file({"key": key.contiguous()}, partial)
    return path


def read_key(path: str | Path) -> Tensor:
    """A key from its file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds no key.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no key at {path}: {_REMEDY}")
    try:
        key = load_file(path)["key"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} holds no key ({error!r}): {_REMEDY}") from error
    if key.ndim != 2 or key.dtype != torch.float64:
        raise ValueError(f"{path} holds no key (a matrix of float64), but {key.dtype} {tuple(key.shape)}: {_REMEDY}")
    pixels, dim = key.shape
    if not (0 < dim < pixels and torch.allclose(key.T @ key, torch.eye(dim, dtype=key.dtype), atol=1e-6)):
        raise ValueError(f"{path} holds no key (an orthonormal basis), which could claim any model: {_REMEDY}")
    return key


def leak(model: StagedViT, key: Tensor) -> float:
    """How much of the key a patch embedding W sees: ||W B||^2 / ||W||^2 over what a random W sees of it, R / (C P P).

    0 for the key's own model, whatever invertible matrix is multiplied to its tokens; 1 on average for weights that
    know nothing of each other. Trained embeddings prefer smooth patches, so that unrelated ones can be well below 1.

    Raises:
        ValueError: the key was made from patches of another number of pixels.
    """
    matrix = PatchNullspace(model).matrix
    pixels, dim = key.shape
    if matrix.shape[1] != pixels:
        raise ValueError(
            f"key is for patches of {pixels} pixels, {model.name} has {matrix.shape[1]}: not the same model"
        )
    return ((matrix @ key).square().sum() / matrix.square().sum() * pixels / dim).item()


def principal_angles(model: StagedViT, key: Tensor) -> np.ndarray:
    """Angles in degrees, rising, between what a patch embedding sees and what the key's model saw.

    The row spaces are compared and not the nullspaces, which must share directions where R > C P P / 2. All are 0 for
    the key's own model. Their sines are the singular values of what the suspect sees of the key, so that the row space
    of the key's model, a decomposition of (C P P, R), is not needed.
    """
    seen = PatchNullspace(model).seen
    pixels, dim = key.shape
    sines = np.zeros(len(seen))
    of_key = torch.linalg.svdvals(seen @ key).numpy()
    sines[: len(of_key)] = of_key.clip(0, 1)
    return np.degrees(np.arcsin(np.sort(sines)))[: pixels - dim]


def fingerprint_table(key: Tensor, suspects: Mapping[str, StagedViT], *, threshold: float = THRESHOLD) -> pd.DataFrame:
    """One row a suspect: leak, median and largest principal angle in degrees, and whether it is said to be the model.

    A suspect with patches of another size is said not to be; its numbers are NaN, and `why` says so.
    """
    rows = []
    for name, model in suspects.items():
        pixels = PatchNullspace(model).matrix.shape[1]
        comparable = pixels == len(key)
        found = leak(model, key) if comparable else float("nan")
        angles = principal_angles(model, key) if comparable else np.array([np.nan])
        rows.append({"suspect": name, "leak": found, "median_angle": float(np.median(angles)),
                     "largest_angle": float(angles.max()), "identified": bool(found < threshold),
                     "why": "" if comparable else f"patches of {pixels} pixels, key of {len(key)}"})  # fmt: skip
    return pd.DataFrame(rows)


def false_positives(strangers: pd.DataFrame) -> pd.DataFrame:
    """How often unrelated models are taken for the key's own, and how near the nearest of them comes.

    Args:
        strangers: a `fingerprint_table` of models that have nothing to do with the key's, with a column `kind`.
    Returns:
        one row for each kind, and one for `all`: share identified with Wilson's interval, smallest leak, and smallest
        median angle in degrees.
    """
    strangers = strangers[strangers.leak.notna()]  # of another patch size the key says nothing
    groups = [*strangers.groupby("kind", sort=False), ("all", strangers)]
    return pd.DataFrame(
        {"kind": kind} | vars(share_estimate(rows.identified))
        | {"smallest_leak": rows.leak.min(), "smallest_median_angle": rows.median_angle.min()}
        for kind, rows in groups
    )  # fmt: skip


def reach(model: StagedViT, other: StagedViT) -> float:
    """How far the patch weight of another model lies from this one's, relative to its norm.

    Raises:
        ValueError: the weights differ in shape.
    """
    own, changed = (m.vit.patch_embed.proj.weight.detach().cpu().double() for m in (model, other))
    if own.shape != changed.shape:
        raise ValueError(
            f"other must have a patch weight {tuple(own.shape)} as {model.name} has, got {tuple(changed.shape)} of "
            f"{other.name}: only a model of the same architecture can be a finetuning of it"
        )
    return ((changed - own).norm() / own.norm()).item()


def rotated(model: StagedViT, side: str, *, generator: torch.Generator) -> StagedViT:
    """A copy whose patch weight is multiplied by a random rotation, of the `tokens` or of the `pixels`.

    The first leaves the nullspace as it is, and a thief could undo it in the next layer to keep the model's function.
    The second moves the nullspace, and no later layer can undo it.

    Raises:
        ValueError: neither side.
    """
    if side not in ("tokens", "pixels"):
        raise ValueError(f"side must be tokens or pixels, got {side!r}")
    other = copy.deepcopy(model)
    weight = other.vit.patch_embed.proj.weight
    matrix = weight.detach().flatten(1).cpu().double()
    size = matrix.shape[0 if side == "tokens" else 1]
    rotation = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    turned = rotation @ matrix if side == "tokens" else matrix @ rotation
    weight.data.copy_(turned.reshape(weight.shape))
    return other


def moved(model: StagedViT, size: float, *, generator: torch.Generator) -> StagedViT:
    """A copy whose patch weight is moved at random by `size` times its own norm: what a finetuning of that reach leaks.

    Raises:
        ValueError: negative size.
    """
    if size < 0:
        raise ValueError(f"size must be >= 0, got {size}")
    other = copy.deepcopy(model)
    weight = other.vit.patch_embed.proj.weight
    step = torch.randn(weight.shape, generator=generator).to(weight)
    weight.data.add_(step * (weight.detach().norm() / step.norm() * size))
    return other


def shuffled(model: StagedViT, *, generator: torch.Generator) -> StagedViT:
    """A copy whose patch weight has the same numbers in another order: a stranger that no histogram tells apart."""
    other = copy.deepcopy(model)
    weight = other.vit.patch_embed.proj.weight
    weight.data.copy_(permute(weight.detach(), generator=generator))
    return other
