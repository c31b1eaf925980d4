"""Is a noise inside the eps-approximate nullspace? The gap of Eq. (5), the match rate, and the way to the boundary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nslib.vit.staged import StagedViT


@dataclass(frozen=True)
class CleanPass:
    """What a model makes of clean images, computed once: patch tokens (M, N, D) and logits (M, K)."""

    tokens: Tensor
    logits: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows) -> CleanPass:
        return CleanPass(self.tokens[rows], self.logits[rows])


class Pool(NamedTuple):
    """Images to learn a noise from, and others, held out, on which its stopping is tested."""

    train: CleanPass
    heldout: CleanPass


class Agreement(NamedTuple):
    """Of each image (M,): squared l2 gap between softmax vectors, in [0, 2], and whether the arg max is the same."""

    gap: Tensor
    match: Tensor


@torch.no_grad()
def clean_pass(model: StagedViT, images: Tensor, *, batch: int = 128) -> CleanPass:
    """Tokens and logits of images (M, C, H, W) in [0, 1], kept on the model's device.

    Raises:
        ValueError: no images, of the wrong shape or outside [0, 1]; logits not finite; the model is in training mode or
            has no head.
    """
    model.check_frozen_use()
    if not len(images):
        raise ValueError("no images: a pool and its held-out part need at least one each")
    model.check_images(images)
    if not model.num_classes:
        raise ValueError(f"{model.name} has no head: give it one by nslib.models.reset_head(model, num_classes)")
    weight = model.vit.patch_embed.proj.weight
    first, *others = images.split(batch)
    some = model.embed(first.to(weight))
    tokens = some.new_empty(len(images), *some.shape[1:])  # joined at the end the parts would take twice the memory
    tokens[:batch] = some
    for start, x in enumerate(others, 1):
        tokens[start * batch : (start + 1) * batch] = model.embed(x.to(weight))
    clean = CleanPass(tokens, torch.cat([model.logits_from_tokens(u) for u in tokens.split(batch)]))
    _check_finite(clean)
    return clean


def make_pool(model: StagedViT, images: Tensor, *, heldout: int, batch: int = 128) -> Pool:
    """Cut images (M, C, H, W) into a training part and the last `heldout`, and pass both through the model.

    Raises:
        ValueError: one of the two parts would be empty, or as `clean_pass`.
    """
    if not 0 < heldout < len(images):
        raise ValueError(f"heldout must leave both parts non-empty: 0 < heldout < {len(images)} images, got {heldout}")
    both = clean_pass(model, images, batch=batch)
    return Pool(both[:-heldout], both[-heldout:])


def probability_gap(noisy: Tensor, clean: Tensor) -> Tensor:
    """Squared l2 gap (B,) between the softmax of two sets of logits (B, K): the authors' "MSE probability"."""
    return (noisy.softmax(1) - clean.softmax(1)).square().sum(1)


@torch.no_grad()
def agreement(model: StagedViT, clean: CleanPass, noise: Tensor, *, batch: int = 128) -> Agreement:
    """Compare predictions with and without a noise (1, N, D) on its tokens, image by image.

    Raises:
        ValueError: the noise does not fit the model, the clean pass is empty, or the model is in training mode.
    """
    check_use(model, clean, noise)
    noisy = torch.cat([model.logits_from_tokens(u + noise) for u in clean.tokens.split(batch)])
    return Agreement(probability_gap(noisy, clean.logits), noisy.argmax(1) == clean.logits.argmax(1))


def noise_gap(model: StagedViT, clean: CleanPass, noise: Tensor) -> float:
    """Mean squared l2 gap between softmax vectors with and without the noise; < eps is membership in Eq. (5)."""
    return agreement(model, clean, noise).gap.mean().item()


def match_rate(model: StagedViT, clean: CleanPass, noise: Tensor) -> float:
    """Share of images whose predicted class the noise leaves as it is."""
    return agreement(model, clean, noise).match.float().mean().item()


class EpsTest(NamedTuple):
    """Verdict of `inside`. Where not all images were `seen`, `gap` is what these add to the mean: a lower bound.

    `match` is the share of those seen whose predicted class stays.
    """

    inside: bool
    gap: float
    seen: int
    match: float


@torch.no_grad()
def inside(model: StagedViT, clean: CleanPass, noise: Tensor, eps: float, *, batch: int = 128) -> EpsTest:
    """Is the mean gap over all images below eps?

    Gaps are never negative, so as soon as those seen add up to eps * M the answer is no, and the rest is not computed.
    """
    check_eps(eps)
    check_use(model, clean, noise)
    total, seen, matched = 0.0, 0, 0
    for u, z in zip(clean.tokens.split(batch), clean.logits.split(batch), strict=True):
        noisy = model.logits_from_tokens(u + noise)
        matches = (noisy.argmax(1) == z.argmax(1)).sum()
        gap, match = torch.stack((probability_gap(noisy, z).sum(), matches)).tolist()  # at once: a GPU waits for each
        total, seen, matched = total + gap, seen + len(u), matched + match
        if not total < eps * len(clean):  # also on NaN
            break
    return EpsTest(seen == len(clean) and total < eps * seen, total / len(clean), seen, matched / seen)


@dataclass(frozen=True)
class Boundary:
    """Where a ray leaves the eps set: noise = scale * direction is the last point found inside.

    `reached` is False when the ray never left it up to `limit` (the gap can saturate); noise is then the farthest
    point tried.
    """

    noise: Tensor
    scale: float
    norm: float
    gap: float
    reached: bool


def boundary_scale(
    model: StagedViT,
    clean: CleanPass,
    direction: Tensor,
    eps: float,
    *,
    start: float | None = None,
    growth: float = 1.25,
    limit: float = 20.0,
    precision: float = 0.01,
) -> Boundary:
    """First exit from the eps set along a ray: a geometric march outwards, then bisection.

    The gap is not monotone along a ray, so that the march, not bisection alone, decides which exit it is: exits and
    re-entries between two of its points are not seen.

    Args:
        direction: (1, N, D), any length but zero.
        start: the scale of the direction at which the march begins, before which no exit is looked for if it is inside;
            by default that of a hundredth of the tokens' root mean square norm.
        growth: ratio of neighbouring points of the march.
        limit: where the march gives up, as a multiple of the tokens' root mean square norm.
        precision: relative width at which bisection stops.
    Raises:
        ValueError: zero or non-finite direction, eps outside (0, 2], a march that would not end, or as `agreement`.
    """
    if not (growth > 1 and limit > 0 and precision > 0):
        told = f"got {growth}, {limit} and {precision}"
        raise ValueError(f"growth must be > 1, limit and precision > 0, {told}")
    if start is not None and not start > 0:
        raise ValueError(f"start must be > 0, a scale of the direction, got {start}")
    _check_finite(clean)
    length = direction.norm().item()
    if not 0 < length < float("inf"):
        raise ValueError(f"direction must be finite and not zero, got norm {length}")
    unit = clean.tokens.flatten(1).norm(dim=1).square().mean().sqrt().item() / length  # scale at the tokens' own norm

    def within(scale: float) -> bool:
        return inside(model, clean, direction * scale, eps).inside

    high = 0.01 * unit if start is None else start
    low = 0.0
    if not within(low):
        raise _below_rounding(model, eps)
    while within(high):
        low, high = high, high * growth
        if high > limit * unit:
            return _boundary(model, clean, direction, low, reached=False)
    while high - low > precision * high and high > 1e-6 * unit:
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) else (low, middle)
    return _boundary(model, clean, direction, low, reached=True)


def _below_rounding(model: StagedViT, eps: float) -> ValueError:
    return ValueError(f"eps = {eps} is below the rounding of {model.name}: even no noise at all is outside")


def _boundary(model: StagedViT, clean: CleanPass, direction: Tensor, scale: float, *, reached: bool) -> Boundary:
    noise = direction * scale
    return Boundary(noise, scale, noise.norm().item(), noise_gap(model, clean, noise), reached)


def permute(noise: Tensor, *, generator: torch.Generator) -> Tensor:
    """The control: the same elements in another order over all N * D places; norm kept, direction lost."""
    order = torch.randperm(noise.numel(), generator=generator).to(noise.device)
    return noise.flatten()[order].reshape(noise.shape)


RANDOM_RULES = ("authors", "boundary")


def random_noise_at(
    model: StagedViT, clean: CleanPass, eps: float, *, rule: str = "authors", generator: torch.Generator
) -> Boundary:
    """Gaussian noise brought into the eps set: the paper's random baseline.

    Args:
        rule: `authors` multiplies N(0, 1) noise by 0.8 until it is inside; `boundary` takes the first exit along its
            ray, which is up to a quarter longer, and more where N(0, 1) noise is inside itself.
    Raises:
        ValueError: unknown rule, eps below the model's rounding, or as `boundary_scale`.
    Source: Table 4 of arXiv:2403.10476.
    """
    direction = torch.randn(1, *model.token_shape, generator=generator).to(clean.tokens)
    if rule == "boundary":
        return boundary_scale(model, clean, direction, eps)
    if rule != "authors":
        raise ValueError(f"rule must be one of {', '.join(RANDOM_RULES)}, got {rule!r}")
    _check_finite(clean)  # else no scale would ever be small enough
    scale = 1.0
    while not inside(model, clean, direction * scale, eps).inside:
        scale *= 0.8
        if scale < 1e-9:
            raise _below_rounding(model, eps)
    return _boundary(model, clean, direction, scale, reached=scale < 1)


def check_eps(eps: float) -> None:
    """Raises ValueError unless eps is a squared gap between softmax vectors that can be tested, in (0, 2]."""
    if not 0 < eps <= 2:
        raise ValueError(f"eps is a squared l2 gap between softmax vectors and must lie in (0, 2], got {eps}")


def check_use(model: StagedViT, clean: CleanPass, noise: Tensor) -> None:
    """Raises ValueError where a noise does not fit the model, there are no images, or the model is in training mode."""
    model.check_frozen_use()
    if not len(clean):
        raise ValueError("the clean pass is empty: it needs at least one image")
    model.check_noise(noise)


def _check_finite(clean: CleanPass) -> None:
    if not clean.logits.isfinite().all():
        rows = (~clean.logits.isfinite()).any(1).sum().item()
        raise ValueError(f"clean logits of {rows} of {len(clean)} images are not finite: look at the model's weights")
