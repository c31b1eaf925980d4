"""A model prepared for exploring: images, what it makes of them, and one noise of each kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from nslib.analysis.controls import control_directions
from nslib.data.source import open_source
from nslib.nullspace.encoder import LearnedNoise
from nslib.nullspace.membership import CleanPass, clean_pass
from nslib.nullspace.patch import PatchNullspace
from nslib.nullspace.stored import stored_noise
from nslib.runtime import generator
from nslib.settings import Settings
from nslib.study.experiment import open_model, open_pool
from nslib.vit.staged import StagedViT

PIXEL_KINDS = ("patch", "targeted")  # exact: added to the pixels, and no token moves
TOKEN_KINDS = ("learned", "permuted", "random")  # added to the tokens, all of one norm
KINDS = PIXEL_KINDS + TOKEN_KINDS
EPS = 0.03  # of the set that `learned` is searched in
SCALES = (-2.0, 2.0)  # from where to where the panel moves a noise


@dataclass(frozen=True)
class Subject:
    """A model with all that takes long prepared: images (M, C, H, W) and what it makes of them, and the noises."""

    model: StagedViT
    images: Tensor
    labels: Tensor  # (M,)
    names: Sequence[str]  # of the classes
    clean: CleanPass
    null: PatchNullspace
    learned: LearnedNoise
    noises: Mapping[str, Tensor]  # those that all images share: (1, C, H, W) in pixels or (1, N, D) in token units

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of noise that this model has: none in pixels where its patch embedding sees every pixel."""
        return KINDS if self.null.dim else TOKEN_KINDS

    @property
    def largest(self) -> float:
        """The largest norm on one patch of any token noise at any scale of the panel: one range for all maps."""
        return max(self.noises[kind].norm(dim=2).max().item() for kind in TOKEN_KINDS) * max(map(abs, SCALES))


def prepare(
    model: StagedViT,
    images: Tensor,
    labels: Tensor,
    names: Sequence[str],
    learned: LearnedNoise,
    *,
    peak: float = 0.5,
    seed: int = 0,
) -> Subject:
    """Make one noise of each kind, and pass the images through the model.

    Args:
        images: (M, C, H, W) in [0, 1], of two classes at least.
        labels: (M,).
        names: of all classes.
        learned: noise in tokens; `permuted` and `random` get its norm.
        peak: largest pixel of the `patch` noise.
    Raises:
        ValueError: images of one class only, or as `clean_pass`.
    """
    if len(labels.unique()) < 2:
        raise ValueError(
            f"images must be of two classes at least, got {len(labels)} of {len(labels.unique())}: "
            "`targeted` lays one of another class over them; ask for more images"
        )
    clean, null = clean_pass(model, images), PatchNullspace(model)
    noises = control_directions(learned.noise, seed=seed)
    if null.dim:
        noises["patch"] = null.sample(1, peak=peak, generator=generator(seed)).to(model.device)
    return Subject(model, images.cpu(), labels.cpu(), names, clean, null, learned, noises)


def open_subject(settings: Settings, name: str, *, images: int) -> Subject:
    """A model of the settings with its first images of split val; its noise is that of notebook 03, from the store.

    Raises:
        As `open_model`, `open_source`, `learn_noise` and `prepare`.
    """
    model = open_model(settings, name)
    source = open_source(settings.data, model)
    pool = open_pool(settings, model, source)
    learned = stored_noise(model, pool, replace(settings.approximate.noise, eps=EPS), seed=settings.seed)
    shown = source.take("val", images)
    return prepare(model, *shown, source.names(), learned, peak=settings.patch.peak, seed=settings.seed)
