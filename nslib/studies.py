"""Settings of each notebook, beside those of `nslib.config`: what it shows, of how much and how finely."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nslib.checks import require, require_all, require_counts, require_each, require_positive
from nslib.config import NoiseConfig

_GAP = (lambda v: 0 < v <= 2, "a squared l2 gap in (0, 2]")


@dataclass(frozen=True)
class PatchStudy:
    """Notebook 01: the linear nullspace."""

    images: int = 64
    peak: float = 0.5  # largest pixel of the noise shown, in units in which images lie in [0, 1]
    amplitudes: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)  # of the sweep, same units

    def __post_init__(self):
        require_counts(self, "images")
        require_positive(self, "peak")
        require_all(self, ("amplitudes",), lambda v: 0 < v < math.inf, "> 0 and finite")


@dataclass(frozen=True)
class SynthesisStudy:
    """Notebook 02: Eq. (4), Figure 3."""

    lambdas: tuple[float, ...] = (0.01, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0)
    starts: int = 1
    noise: NoiseConfig = NoiseConfig(eps=None, limit=0.5, lr=0.05, steps=120, batch=64)

    def __post_init__(self):
        require_all(self, ("lambdas",), lambda v: 0 <= v < math.inf, ">= 0 and finite")
        require_counts(self, "starts")


@dataclass(frozen=True)
class ApproximateStudy:
    """Notebook 03: Eqs. (5), (7), (8)."""

    eps: tuple[float, ...] = (0.01, 0.03, 0.1)
    starts: int = 3
    noise: NoiseConfig = NoiseConfig(batch=64)
    reach_images: int = 128  # of the reported ones, for the way to the boundary

    def __post_init__(self):
        require_all(self, ("eps",), *_GAP)
        require_counts(self, "starts", "reach_images")


@dataclass(frozen=True)
class ClosureStudy:
    """Notebook 04: Appendix D, Figure 5."""

    noises: int = 16  # learned from as many starts
    noise: NoiseConfig = NoiseConfig(batch=64)  # its eps is that of the set
    judged_images: int = 512  # of the reported ones or all there are, for the scales and the line that are judged
    images: int = 64  # of these, for everything else
    grid_images: int = 2  # of these in turn, for each pair of the grid of Fig. 5b
    step: float = 0.125  # of the scales, -2 to 2
    grid_step: float = 0.125  # of alpha and beta, -1.5 to 1.5
    pairs: int = 30
    control_pairs: int = 15  # the first of these, for the grid and the line of the permuted noises
    convex: tuple[int, ...] = (3, 5, 10)  # members of further convex combinations
    spans: tuple[int, ...] = (1, 2, 4, 8, 16)  # noises mixed with coefficients on the unit sphere
    draws: int = 100  # such combinations

    def __post_init__(self):
        require_counts(self, "noises", least=2)
        require_counts(self, "judged_images", "images", "grid_images", "pairs", "control_pairs", "draws")
        require_positive(self, "step", "grid_step")
        require_all(self, ("convex", "spans"), lambda v: v >= 1, ">= 1")


@dataclass(frozen=True)
class WatermarkStudy:
    """Notebooks 09 and 10: Appendices E and F."""

    images: int = 200
    strengths: tuple[float, ...] = (0.1, 0.3, 0.6, 1.0)  # 1 aims at the other picture itself
    saliency_images: int = 64

    def __post_init__(self):
        require_counts(self, "images", "saliency_images")
        require_all(self, ("strengths",), lambda v: 0 <= v <= 1, "in [0, 1]")


@dataclass(frozen=True)
class FingerprintStudy:
    """Notebook 13: the strangers that the key is held against, Section 6."""

    untrained: int = 20  # the architecture from other seeds
    permuted: int = 20  # the model's own patch weight, its numbers in another order
    trained: int = 2  # the architecture trained on `shapes` from other seeds; beside shipped weights these ship too
    steps: int = 10000  # of such a training
    batch: int = 128

    def __post_init__(self):
        require_counts(self, "untrained", "permuted", "steps", "batch")
        require_counts(self, "trained", least=0)


@dataclass(frozen=True)
class RobustnessStudy:
    """Notebook 06: the columns of Table 2, and accuracy against the strength of an attack."""

    eps: tuple[float, ...] = (0.0, 0.25 / 255, 0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255)  # linf, pixels
    images: int = 128  # of the curves
    authors_images: int = 256  # of the comparison with the authors' handling

    def __post_init__(self):
        require_all(self, ("eps",), lambda v: 0 <= v <= 1, "in [0, 1], 8-bit levels divided by 255")
        require_counts(self, "images", "authors_images")


@dataclass(frozen=True)
class FinetuningStudy:
    """Notebooks 05 to 08 and 11: which models are finetuned, and on what they are measured."""

    objectives: tuple[str, ...] = ("nullspace", "plain", "random", "permuted", "madry", "trades")
    seeded: tuple[str, ...] = ("nullspace", "plain", "random", "permuted", "nullspace_by_batch")  # with several seeds
    seeds: int = 1
    columns: tuple[str, ...] = ("clean", "fgsm", "damagenet", "a", "c", "v2", "r", "sketch", "stylized")
    images: int = 400  # of each column
    costly_images: int = 0  # of patchfool, cw and autoattack, instead of the suite's; 0: those
    wide_images: int = 0  # of each other column (c: twice its own), to compare rows of one seed; 0: as in the tables
    trace_images: int = 200  # of each column after every round, Fig. 4
    eps: tuple[float, ...] = (0.03,)  # Table 4
    fresh: int = 2  # new noises along which the eps set is measured before and after
    reach_blocks: int = 1  # of approximate.reach_images images of val each, on which that is done; the controls on one
    fixed_steps: int = 0  # T of the run without early stopping, C19; 0: not run
    variants: bool = False  # of notebook 11: the position embedding alone, and the options beyond the paper
    search_lr: tuple[float, ...] = ()  # learning rates that the recipe is compared with, on val alone; empty: not run
    search_eps: tuple[float, ...] = ()  # with each of them; empty: the recipe's own
    search_limits: tuple[float, ...] = ()  # of the noise's start, at the recipe's own lr and eps
    search_bases: tuple[int, ...] = ()  # seeds of other base models, finetuned with the recipe: see `open_stranger`
    search_rounds: int = 5  # of each such run
    search_longer: tuple[int, ...] = ()  # rounds of further runs with the recipe itself
    search_few: tuple[int, ...] = ()  # images, so few that finetuning on them without noise harms, with the recipe
    search_images: int = 1000  # of val that judge it
    search_first: int = 20000  # the first of these, from suite.first on: beyond all that are reported anywhere
    keep: bool = False  # results of each run as a small file beside the figures, from which a later call takes them

    def __post_init__(self):
        require_counts(self, "seeds", "images", "trace_images", "fresh", "reach_blocks")
        require_counts(self, "search_rounds", "search_images")
        require_counts(self, "costly_images", "fixed_steps", "search_first", least=0)
        require_each(self, ("eps",), lambda values: all(map(_GAP[0], values)), f"values, each {_GAP[1]}")
        wide = self.wide_images
        require(wide == 0 or wide >= self.images, "wide_images", f"0, or >= images = {self.images}", wide)
        require({"plain", "nullspace"} <= {*self.objectives}, "objectives", "plain, nullspace, ...", self.objectives)
        told = "given with search_lr, whose rates are tried with each"
        require(bool(self.search_lr or not self.search_eps), "search_eps", told, self.search_eps)

    @property
    def searches(self) -> bool:
        """Whether settings are looked for, on images of val beyond all that are reported."""
        return any((self.search_lr, self.search_limits, self.search_bases, self.search_longer, self.search_few))
