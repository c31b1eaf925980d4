"""Appendices E and F: another picture laid over an image, as far as the patch embedding does not see it, Eq. (12)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nslib.analysis.pictures import as_jpeg, check_png, eight_bit, read_picture, write_picture
from nslib.intervals import share_estimate
from nslib.nullspace.patch import PatchNullspace
from nslib.vit.staged import StagedViT, batched_logits

_PART = 32  # images solved at once, which bounds the memory at 224 px


@contextmanager
def _one_thread() -> Iterator[None]:
    """Hundreds of small steps: threads gain little, and lose a hundredfold where another process keeps a core busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def blend(source: Tensor, target: Tensor, strength: float) -> Tensor:
    """The picture to come near to: (1 - strength) source + strength target; 1 is a disguise, less a watermark.

    Raises:
        ValueError: another size, or strength outside [0, 1].
    """
    if source.shape != target.shape:
        raise ValueError(
            f"source and target must have the same size, got {tuple(source.shape)} and {tuple(target.shape)}: "
            "resize one of them"
        )
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1], got {strength}")
    return source.lerp(target, strength)


def nearest(null: PatchNullspace, source: Tensor, target: Tensor) -> Tensor:
    """Eq. (12) in closed form: the image nearest to the target, (B, C, H, W), among those with the source's tokens.

    Patch by patch, all channels together, the difference is projected onto the nullspace. Pixels may leave [0, 1].

    Raises:
        ValueError: the nullspace is trivial, or source and target differ in size.
    """
    _check(null, source, target)
    return torch.cat([own + null.project(wanted - own)[0] for own, wanted in _parts(source, target)])


@_one_thread()
def nearest_legal(
    null: PatchNullspace, source: Tensor, target: Tensor, *, steps: int = 3000, tol: float = 1e-4
) -> Tensor:
    """As `nearest`, under the constraint that every pixel lies in [0, 1].

    With C the orthonormal rows that span what the embedding sees, min ||x - t||^2 / 2 subject to C x = C s and
    0 <= x <= 1 has the dual gradient C x(l) - C s, x(l) = clip(t - C^T l, 0, 1), of Lipschitz constant 1. It is climbed
    with Nesterov's momentum, restarted patch by patch whenever it points downhill, all patches at once.

    Args:
        source, target: (B, C, H, W) in [0, 1].
        steps: at most.
        tol: largest coordinate of C (x - s) at which a patch is done; rounding to 8 bits alone adds about .001.
    Warns:
        UserWarning: patches were not done after these steps; says how many, and how far off the worst one is.
    Raises:
        ValueError: the nullspace is trivial, source and target differ in size, or the source leaves [0, 1].
    """
    _check(null, source, target)
    if not (source.amin() >= 0 and source.amax() <= 1):
        raise ValueError(f"source must lie in [0, 1], got [{source.amin():.3g}, {source.amax():.3g}]")
    images, errors = zip(*(_climb(null, *pair, steps, tol) for pair in _parts(source, target)), strict=True)
    error = torch.cat(errors)
    if late := int((error >= tol).sum()):
        warnings.warn(
            f"{late} of {len(error)} patches are not done after {steps} steps: what the model sees of the worst is off "
            f"by {error.max():.2g} of the pixel range, allowed are {tol:.2g}: raise steps",
            stacklevel=3,
        )
    return torch.cat(images)


def _climb(null: PatchNullspace, source: Tensor, target: Tensor, steps: int, tol: float) -> tuple[Tensor, Tensor]:
    """`nearest_legal` of a few images, and what is left of each patch's largest |C (x - s)|, (B N,)."""
    seen = null.seen.to(source)  # (rank, C P P)
    own, wanted = (null.unfold(images).flatten(0, 1) for images in (source, target))
    result, error = own.clone(), own.new_zeros(len(own))
    active = torch.arange(len(own), device=source.device)
    done = torch.zeros_like(active, dtype=torch.bool)  # of the active ones: a patch keeps what it was at when it was
    multiplier = own.new_zeros(len(own), len(seen))
    ahead, momentum = multiplier.clone(), own.new_ones(len(own), 1)
    tokens, goal = own @ seen.T, wanted
    for _ in range(steps):
        pixels = (goal - ahead @ seen).clamp(0, 1)
        gradient = pixels @ seen.T - tokens
        late = ~done
        result[active[late]], error[active[late]] = pixels[late], gradient[late].abs().amax(1)
        done = error[active] < tol
        if done.all():
            break
        if done.float().mean() > 0.25:  # leave out what is done, but not at every step: copying costs as well
            keep = ~done
            active, goal, tokens, gradient = active[keep], goal[keep], tokens[keep], gradient[keep]
            done = done[keep]
            multiplier, ahead, momentum = multiplier[keep], ahead[keep], momentum[keep]
        new = ahead + gradient
        downhill = ((new - multiplier) * gradient).sum(1, keepdim=True) < 0
        momentum = torch.where(downhill, 1.0, momentum)
        following = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        ahead = new + (momentum - 1) / following * (new - multiplier)
        multiplier, momentum = new, following
    return null.fold(result.unflatten(0, (len(target), -1)), target), error


def round_unseen(null: PatchNullspace, images: Tensor, *, damping: float = 0.01) -> Tensor:
    """Images in [0, 1] at 256 levels, chosen so that the embedding sees little of the rounding.

    Pixels of a patch are rounded one after the other, and the error of each is made up for by those not yet rounded, as
    far as W sees it: with H = W^T W (mean non-zero eigenvalue 1) + damping, that is Babai's plane on the lattice of
    levels. A smaller damping lets pixels move by more levels.

    Source: the algorithm is that of GPTQ, Frantar et al., ICLR 2023, there for weights.
    """
    energy = null.matrix.T @ null.matrix
    energy = energy * (null.rank / energy.trace()) + damping * torch.eye(len(energy), dtype=energy.dtype)
    factor = torch.linalg.cholesky(torch.linalg.inv(energy), upper=True)
    feedback = (factor / factor.diagonal().unsqueeze(1)).to(images.dtype).numpy()
    return torch.cat([_round(null, part, feedback) for part in images.split(_PART)])


def _round(null: PatchNullspace, images: Tensor, feedback: np.ndarray) -> Tensor:
    levels = (null.unfold(images).flatten(0, 1) * 255).T.contiguous().cpu().numpy()  # (C P P, B N)
    for i, row in enumerate(levels):  # many small steps, which threads and GPUs only slow down
        rounded = row.round().clip(0, 255)
        levels[i + 1 :] -= np.outer(feedback[i, i + 1 :], row - rounded)
        levels[i] = rounded
    patches = torch.from_numpy(levels).T.to(images) / 255
    return null.fold(patches.unflatten(0, (len(images), -1)), eight_bit(images))


def permuted_change(null: PatchNullspace, source: Tensor, result: Tensor, *, generator: torch.Generator) -> Tensor:
    """A control: the source (B, C, H, W) with the same change as the result's, its pixels in another order in a patch.

    The order is one for all patches. Clipped to [0, 1] and rounded to 256 levels, which makes the change a little less.
    """
    order = torch.randperm(null.matrix.shape[1], generator=generator)
    change = null.unfold(result - source)[..., order.to(source.device)]
    return eight_bit((source + null.fold(change)).clamp(0, 1))


def effect_table(model: StagedViT, source: Tensor, result: Tensor, target: Tensor) -> pd.DataFrame:
    """What became of images (B, C, H, W): one row each.

    Columns: class before and after, confidence before and after (the softmax of the class before), `match`, largest
    change of a logit and of a pixel, and the peak signal-to-noise ratio (dB) to the target, of the source
    (`psnr_before`) and of the result (`psnr`), and of the result to the source (`psnr_source`).
    """
    before, after = (batched_logits(model, part.to(model.device), batch=_PART) for part in (source, result))
    labels, found = before.argmax(1), after.argmax(1)
    return pd.DataFrame(
        {
            "class_before": labels.cpu(),
            "class_after": found.cpu(),
            "match": (labels == found).cpu(),
            "confidence_before": before.softmax(1).amax(1).cpu(),
            "confidence_after": after.softmax(1).gather(1, labels.unsqueeze(1))[:, 0].cpu(),
            "logits": (after - before).abs().amax(1).cpu(),
            "pixels": (result - source).abs().flatten(1).amax(1).cpu(),
            "psnr_before": _psnr(source, target).cpu(),
            "psnr": _psnr(result, target).cpu(),
            "psnr_source": _psnr(result, source).cpu(),
        }
    )


def _psnr(images: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB; 100 for pictures that are equal."""
    return -10 * (images - target).square().flatten(1).mean(1).clamp(min=1e-10).log10()


def strength_table(
    model: StagedViT,
    null: PatchNullspace,
    source: Tensor,
    target: Tensor,
    strengths: Sequence[float],
    *,
    generator: torch.Generator,
) -> pd.DataFrame:
    """What is left of predictions when images (B, C, H, W) are drawn towards a target, in 256 levels, in several ways.

    `nullspace` is `disguise`; `nearest level` the same solution with each pixel rounded for itself; `clipped` the
    closed form of Eq. (12) cut to [0, 1]; `JPEG 95` the disguise saved as such; `permuted` its change with the pixels
    in another order (see `permuted_change`); `blend` the aim itself.

    Returns:
        one row for each strength and way: share of predictions that stay, with interval; mean absolute change of the
        class's confidence, mean largest change of a logit, mean PSNR to the aim (dB).
    """
    rows = []
    for strength in strengths:
        aim = blend(source, target, strength)
        legal = nearest_legal(null, source, aim)
        made = round_unseen(null, legal)
        ways = {
            "nullspace": made,
            "nearest level": eight_bit(legal),
            "clipped": eight_bit(nearest(null, source, aim).clamp(0, 1)),
            "JPEG 95": torch.stack([as_jpeg(image) for image in made]).to(made),
            "permuted": permuted_change(null, source, made, generator=generator),
            "blend": eight_bit(aim),
        }
        for way, images in ways.items():
            effect = effect_table(model, source, images, aim)
            moved = (effect.confidence_after - effect.confidence_before).abs()
            means = {"confidence": moved.mean(), "logits": effect.logits.mean(), "psnr": effect.psnr.mean()}
            rows.append({"strength": strength, "way": way} | vars(share_estimate(effect.match)) | means)
    return pd.DataFrame(rows)


def disguise(null: PatchNullspace, source: Tensor, target: Tensor, *, strength: float = 1.0) -> Tensor:
    """Images drawn towards the target as far as that goes, in 256 levels, with nearly the source's tokens.

    Args:
        source, target: (B, C, H, W) in [0, 1].
        strength: 1 aims at the target; less at a blend, such as .3 for a watermark.
    Raises:
        ValueError: as `blend` and `nearest_legal`.
    """
    return round_unseen(null, nearest_legal(null, source, blend(source, target, strength)))


def disguise_file(model: StagedViT, source: Path, target: Path, out: Path, *, strength: float = 1.0) -> dict:
    """`disguise` from pictures to a PNG; the numbers are of that file, read again, as a row of `effect_table`.

    Both `psnr` are to the aim, the target or its blend with the source.

    Raises:
        ValueError: as `disguise`, `read_picture` and `write_picture`, pictures of another size than the model's,
            strength 0, or `out` is one of the two pictures.
        OSError: a file cannot be read or written.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength must lie in (0, 1], where 0 would save the source as it is; got {strength:g}")
    source, target, out = (path.expanduser() for path in (source, target, out))
    check_png(out)  # before what takes long
    if any(out.exists() and path.exists() and out.samefile(path) for path in (source, target)):
        raise ValueError(f"{out} is one of the two pictures, and would be lost: name another file to write")
    own, wanted = (read_picture(path).unsqueeze(0) for path in (source, target))
    made = disguise(PatchNullspace(model), own, wanted, strength=strength)
    saved = read_picture(write_picture(out, made[0])).unsqueeze(0)
    return effect_table(model, own, saved, blend(own, wanted, strength)).iloc[0].to_dict()


def _parts(source: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(source.split(_PART), target.split(_PART), strict=True)


def _check(null: PatchNullspace, source: Tensor, target: Tensor) -> None:
    null.check_not_trivial()
    blend(source, target, 1.0)
    null.check_images(source)
