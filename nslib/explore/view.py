"""One choice of model, image and noise, answered at once: what is seen, and what the model makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nslib.analysis.watermark import nearest
from nslib.explore.subject import PIXEL_KINDS, Subject, open_subject
from nslib.nullspace.membership import probability_gap
from nslib.settings import Settings


@dataclass(frozen=True)
class Choice:
    """What to look at: a model by name, an image by number, a kind of noise, and its multiple."""

    model: str
    image: int = 0
    kind: str = "learned"
    scale: float = 1.0


@dataclass(frozen=True)
class View:
    """What one choice shows. Tensors are on the CPU."""

    choice: Choice
    subject: Subject
    image: Tensor  # (C, H, W)
    changed: Tensor | None  # (C, H, W), uncut, so it may leave [0, 1]; None for noise on tokens, which has no picture
    norms: Tensor | None  # (rows, columns), norm of the noise on each patch; None for noise on pixels
    target: int | None  # number of the image laid over, of `targeted` noise
    before: Tensor  # (K,) probabilities
    after: Tensor
    gap: float  # squared l2 between the two
    norm: float  # of the noise, in pixels or in token units
    shift: float  # norm of the change of the tokens
    tokens: float  # norm of the tokens

    @property
    def predictions(self) -> tuple[int, int]:
        """Class before and after."""
        return self.before.argmax().item(), self.after.argmax().item()

    @property
    def match(self) -> bool:
        """Whether the class is the same before and after."""
        before, after = self.predictions
        return before == after

    def row(self) -> dict[str, Any]:
        """The numbers as a line of a table."""
        before, after = (self.subject.names[c] for c in self.predictions)
        measured = {"gap": self.gap, "norm": self.norm, "shift": self.shift}
        return {"noise": self.choice.kind, "scale": self.choice.scale, "before": before, "after": after, **measured}


class Explorer:
    """Answers choices; opens each model when it is first asked for, and keeps it.

    Args:
        subjects: for each name, what opens its subject.
    """

    def __init__(self, subjects: Mapping[str, Callable[[], Subject]]):
        self._open = dict(subjects)
        self._opened: dict[str, Subject] = {}

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self._open)

    def subject(self, name: str) -> Subject:
        """The prepared model of this name.

        Raises:
            ValueError: there is none; else as what opens it.
        """
        if name not in self._open:
            raise ValueError(f"model must be one of {', '.join(self._open)}, got {name!r}")
        if name not in self._opened:
            self._opened[name] = self._open[name]()
        return self._opened[name]

    def is_open(self, name: str) -> bool:
        """Whether showing this model will be quick."""
        return name in self._opened

    @torch.no_grad()
    def show(self, choice: Choice) -> View:
        """One forward pass, of the image with its noise.

        Raises:
            ValueError: no such model, image or kind of noise, or a scale that is not finite.
        """
        subject = self.subject(choice.model)
        _check(choice, subject)
        model, i = subject.model, choice.image
        image, clean = subject.images[i : i + 1].to(model.device), subject.clean[i : i + 1]
        target, changed, norms = None, None, None
        if choice.kind in PIXEL_KINDS:
            if choice.kind == "targeted":
                target = _of_another_class(subject.labels, i)
                noise = nearest(subject.null, image, subject.images[target : target + 1].to(image)) - image
            else:
                noise = subject.noises[choice.kind]
            noise = noise * choice.scale
            changed = image + noise
            tokens = model.embed(changed)
        else:
            noise = subject.noises[choice.kind] * choice.scale
            norms = noise.norm(dim=2).reshape(model.vit.patch_embed.grid_size).cpu()
            tokens = clean.tokens + noise
        logits = model.logits_from_tokens(tokens)
        return View(
            choice=choice,
            subject=subject,
            image=image[0].cpu(),
            changed=None if changed is None else changed[0].cpu(),
            norms=norms,
            target=target,
            before=clean.logits[0].softmax(0).cpu(),
            after=logits[0].softmax(0).cpu(),
            gap=probability_gap(logits, clean.logits).item(),
            norm=noise.norm().item(),
            shift=(tokens - clean.tokens).norm().item(),
            tokens=clean.tokens.norm().item(),
        )


def open_explorer(settings: Settings, *, images: int = 100) -> Explorer:
    """An explorer of all models of the settings and the first images of split val; nothing is opened yet."""
    return Explorer({name: partial(open_subject, settings, name, images=images) for name in settings.models})


def _check(choice: Choice, subject: Subject) -> None:
    if choice.kind not in subject.kinds:
        why = "" if subject.null.dim else ", whose patch embedding sees every pixel"
        raise ValueError(f"kind must be one of {', '.join(subject.kinds)} for {choice.model}{why}, got {choice.kind!r}")
    if not 0 <= choice.image < len(subject.images):
        raise ValueError(f"image must lie in 0..{len(subject.images) - 1}, got {choice.image}: open more images")
    if not math.isfinite(choice.scale):
        raise ValueError(f"scale must be finite, got {choice.scale}")


def _of_another_class(labels: Tensor, i: int) -> int:
    """Number of the next image whose label is not that of image i, after the last one from the first on."""
    return (i + (labels.roll(-i) != labels[i]).nonzero()[0, 0].item()) % len(labels)
