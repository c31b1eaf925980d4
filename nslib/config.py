"""Settings as frozen dataclasses, one a task, and the profiles that override them. This module knows no other."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints


def _require(holds: bool, name: str, expected: str, received: object) -> None:
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {received!r}")


@dataclass(frozen=True)
class DataConfig:
    """Where images come from."""

    kind: str = "shapes"  # or "folder", an ImageNet-style tree
    root: str = ""  # of the folder
    seed: int = 0


@dataclass(frozen=True)
class PretrainConfig:
    """Training of a classifier on `shapes` from scratch: AdamW, one-cycle learning rate, fresh images every step."""

    model: str = "shapes_vit"
    size: int = 48  # image side, pixels
    steps: int = 10000
    batch: int = 128
    lr: float = 1.5e-3  # peak
    weight_decay: float = 0.05
    clip: float = 1.0  # largest gradient norm
    seed: int = 0
    checkpoint_every: int = 200  # steps between saved states
    report_images: int = 4000  # of each split, for the record

    def __post_init__(self):
        for name in ("size", "steps", "batch", "checkpoint_every", "report_images"):
            _require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))
        _require(self.lr > 0, "lr", "> 0", self.lr)


@dataclass(frozen=True)
class NoiseConfig:
    """Learning of one noise. Units are those of patch tokens; eps is a squared l2 gap between softmax vectors."""

    limit: float = 3.0  # start: uniform in (-limit, limit)
    lr: float = 0.1  # AdamW, cosine to 0 over `steps`
    weight_decay: float = 0.01
    steps: int = 3000  # most updates (all of them without eps)
    batch: int = 128
    eps: float | None = 0.03  # in (0, 2]; None: no early stop, Eq. (4)
    regularization: float = 0.0  # lambda of Eq. (4)
    stop_on: str = "heldout"  # or "batch", as the authors do

    def __post_init__(self):
        _require(self.limit > 0, "limit", "> 0", self.limit)
        _require(self.lr > 0, "lr", "> 0", self.lr)
        _require(self.steps >= 1, "steps", ">= 1", self.steps)
        _require(self.batch >= 1, "batch", ">= 1", self.batch)
        _require(self.eps is None or 0 < self.eps <= 2, "eps", "a squared l2 gap in (0, 2], or None", self.eps)
        _require(self.regularization >= 0, "regularization", ">= 0", self.regularization)
        _require(self.stop_on in ("heldout", "batch"), "stop_on", "heldout or batch", self.stop_on)


@dataclass(frozen=True)
class PatchStudy:
    """Notebook 01: the linear nullspace."""

    images: int = 64
    peak: float = 0.5  # largest pixel of the noise shown, in units in which images lie in [0, 1]
    amplitudes: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)  # of the sweep, same units


@dataclass(frozen=True)
class SynthesisStudy:
    """Notebook 02: Eq. (4), Figure 3."""

    lambdas: tuple[float, ...] = (0.01, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0)
    starts: int = 1
    noise: NoiseConfig = NoiseConfig(eps=None, limit=0.5, lr=0.05, steps=120)


@dataclass(frozen=True)
class ApproximateStudy:
    """Notebook 03: Eqs. (5), (7), (8)."""

    eps: tuple[float, ...] = (0.01, 0.03, 0.1)
    starts: int = 3
    noise: NoiseConfig = NoiseConfig()
    reach_images: int = 256  # of the reported ones, for the way to the boundary


@dataclass(frozen=True)
class Settings:
    """Everything a notebook can be asked to do differently. The defaults are those of the `laptop` profile."""

    profile: str = "laptop"
    run_name: str = "laptop"
    seed: int = 0
    device: str = "auto"
    data: DataConfig = DataConfig()
    models: tuple[str, ...] = ("shapes_vit",)
    weights: str = "shipped"  # shipped, pretrained, random, train (from scratch, kept in the store), a file or folder
    pool: int = 2048  # images of split train to learn noise from
    heldout: int = 512  # further images of split train, for stopping tests
    images: int = 2000  # of split val, for everything reported
    pretrain: PretrainConfig = PretrainConfig()
    patch: PatchStudy = PatchStudy()
    synthesis: SynthesisStudy = SynthesisStudy()
    approximate: ApproximateStudy = ApproximateStudy()


PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {
        "pool": 256,
        "heldout": 128,
        "images": 256,
        "patch.images": 16,
        "synthesis.lambdas": (0.1, 1.0),
        "synthesis.noise.steps": 20,
        "approximate.eps": (0.03, 0.1),
        "approximate.starts": 2,
        "approximate.noise.steps": 60,
        "approximate.reach_images": 128,
    },
    "laptop": {},
    "full": {
        "images": 4000,
        "synthesis.starts": 3,
        "synthesis.noise.lr": 0.02,
        "synthesis.noise.steps": 400,
        "approximate.starts": 10,
    },
    "gpu": {
        "models": ("vit_small_patch32_224", "vit_base_patch32_224"),
        "weights": "train",
        "pretrain.size": 224,
        "pretrain.steps": 10000,
        "pretrain.batch": 256,
        "pretrain.lr": 1e-3,
        "images": 4000,
        "synthesis.starts": 3,
    },
    "imagenet": {
        "data.kind": "folder",
        "models": ("vit_small_patch32_224.augreg_in21k_ft_in1k", "vit_base_patch32_224.augreg_in21k_ft_in1k"),
        "weights": "pretrained",
        # Sized for two cores without a GPU; the README has the paper's own sizes for a GPU.
        "pool": 768,
        "heldout": 192,
        "images": 400,
        "synthesis.lambdas": (0.01, 0.1, 0.3, 0.6, 1.0, 2.0),
        "synthesis.noise.limit": 0.1,
        "synthesis.noise.lr": 0.005,
        "synthesis.noise.steps": 100,
        "synthesis.noise.batch": 16,
        "approximate.eps": (0.03, 0.1),
        "approximate.starts": 1,
        "approximate.noise.limit": 0.5,
        "approximate.noise.lr": 0.02,
        "approximate.noise.steps": 120,
        "approximate.noise.batch": 16,
        "approximate.reach_images": 128,
    },
}


def resolve(profile: str, run_name: str = "", overrides: dict[str, Any] | None = None) -> Settings:
    """The settings of a profile, with overrides by dotted name such as {"synthesis.noise.steps": 100}.

    At `imagenet` the image folder and the weights default to $NSLIB_IMAGENET and $NSLIB_WEIGHTS, and with a folder of
    weights the models to the plain ViTs that it holds.

    Raises:
        ValueError: unknown profile or name, or a value of another type than the default's.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {profile!r}")
    chosen = {**PROFILES[profile], **(_real_input(overrides or {}) if profile == "imagenet" else overrides or {})}
    settings = Settings(profile=profile, run_name=run_name or profile)
    for name, value in chosen.items():
        settings = _override(settings, name, name.split("."), value)
    return settings


def _real_input(overrides: dict[str, Any]) -> dict[str, Any]:
    """Fill in folders from the environment, and models from the folder of weights."""
    environment = {"data.root": os.environ.get("NSLIB_IMAGENET"), "weights": os.environ.get("NSLIB_WEIGHTS")}
    chosen = {k: v for k, v in environment.items() if v} | overrides
    folder = Path(chosen.get("weights", ""))
    if "models" not in chosen and chosen.get("weights") and folder.is_dir():
        found = tuple(sorted(p.stem for p in folder.glob("vit_*.safetensors")))
        if not found:
            raise ValueError(f"no vit_*.safetensors in {folder}: name the models with --set models=TAG")
        chosen["models"] = found
    return chosen


def _override(part: Any, full_name: str, path: list[str], value: Any) -> Any:
    known = {f.name: getattr(part, f.name) for f in fields(part)}
    head, *rest = path
    if head not in known or (rest and not is_dataclass(known[head])) or (not rest and is_dataclass(known[head])):
        raise ValueError(f"no setting {full_name!r}: {type(part).__name__} has {', '.join(known)}")
    if rest:
        return replace(part, **{head: _override(known[head], full_name, rest, value)})
    return replace(part, **{head: _typed(full_name, get_type_hints(type(part))[head], known[head], value)})


def _typed(name: str, hint: Any, default: Any, value: Any) -> Any:
    """The value in the type of its setting: JSON and command lines know no tuples, and write 1 for 1.0."""
    if get_origin(hint) is tuple:
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(_typed(name, get_args(hint)[0], default, v) for v in values)
    allowed = get_args(hint) or (hint,)
    if float in allowed and type(value) is int:
        return float(value)
    if type(value) not in allowed:
        raise ValueError(f"setting {name} must be a {allowed[0].__name__} such as {default!r}, got {value!r}")
    return value
