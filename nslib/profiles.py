"""The profiles: which settings a run takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nslib.config import TABLE2, WEIGHTS
from nslib.settings import Settings, overridden
from nslib.studies import FinetuningStudy

_EVERY = ("nullspace", "plain", "random", "permuted", "random_boundary", "madry", "madry_authors", "trades", "mixup",
          "randaugment", "augmix", "sam")  # fmt: skip

_PAPER = {"finetune.rounds": 20, "finetune.steps": 40, "finetune.lr": 1e-5, "finetune.lr_min": 1e-6}
_NOISE = {
    "synthesis.noise.batch": 128,
    "approximate.noise.batch": 128,
    "approximate.reach_images": 256,
    "finetune.noise.batch": 128,
}
_CLOSURE = {
    "closure.noises": 32,
    "closure.judged_images": 2000,
    "closure.images": 512,
    "closure.grid_images": 32,
    "closure.step": 0.1,
    "closure.grid_step": 0.1,
    "closure.pairs": 50,
    "closure.control_pairs": 50,
    "closure.spans": (1, 2, 4, 8, 16, 32),
    "closure.draws": 200,
}

_IMAGENET: dict[str, Any] = {
    **_PAPER,
    **_NOISE,
    "data.kind": "folder",
    "models": ("vit_small_patch16_224.augreg_in21k_ft_in1k", "vit_base_patch16_224.augreg_in21k_ft_in1k"),
    "weights": "pretrained",
    "surrogate": "deit_tiny_patch16_224.fb_in1k",
    "surrogate_weights": "pretrained",
    "pool": 8192,
    "heldout": 1024,
    "images": 10000,
    "synthesis.noise.limit": 0.1,
    "synthesis.noise.lr": 0.005,
    "synthesis.noise.steps": 3000,
    "closure.noise.batch": 128,
    **_CLOSURE,
    "fingerprint.trained": 0,  # pretrained models stand there instead
    "robustness.images": 1000,
    "robustness.authors_images": 1000,
    "suite.images": 10000,
    "suite.c_images": 5000,
    "suite.costly_images": 1000,
    "suite.transfer_eps": 8 / 255,
    "suite.transfer_smoothing": 1,  # between two ViTs more costs
    "finetune.pool": 4096,
    "finetune.heldout": 1024,
    "finetune.precision": "bfloat16",  # kept results are taken on any machine: the same on all
    "finetuning.columns": TABLE2,
    "finetuning.images": 10000,
    "finetuning.trace_images": 1000,
    "finetuning.eps": (0.01, 0.03, 0.1),
    "finetuning.fresh": 4,
    "finetuning.variants": True,
    "finetuning.fixed_steps": 3000,
    "finetuning.keep": True,
}

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
        "approximate.noise.limit": 2.0,
        "approximate.noise.batch": 32,
        "approximate.reach_images": 32,
        "closure.noises": 4,
        "closure.noise.limit": 2.0,
        "closure.noise.batch": 32,
        "closure.judged_images": 64,
        "closure.images": 16,
        "closure.grid_images": 8,
        "closure.step": 0.5,
        "closure.grid_step": 0.5,
        "closure.pairs": 6,
        "closure.spans": (1, 2, 4),
        "closure.draws": 20,
        "watermark.images": 32,
        "watermark.strengths": (0.3, 1.0),
        "watermark.saliency_images": 16,
        "robustness.eps": (0.0, 1 / 255, 16 / 255),
        "robustness.images": 32,
        "robustness.authors_images": 64,
        "finetune.rounds": 2,
        "finetune.steps": 3,
        "finetune.batch": 32,
        "finetune.pool": 128,
        "finetune.heldout": 64,
        "finetune.noise.limit": 2.0,
        "finetune.noise.steps": 400,
        "finetune.noise.batch": 32,
        "finetuning.objectives": (*FinetuningStudy.objectives, "nullspace_by_batch"),
        "finetuning.images": 32,
        "finetuning.trace_images": 16,
        "finetuning.fresh": 1,
        "finetuning.reach_blocks": 2,
        "finetuning.variants": True,
        "suite.images": 64,
        "suite.c_images": 8,
        "suite.costly_images": 8,
        "suite.batch": 64,
        "suite.patchfool_steps": 50,
        "suite.cw_steps": 20,
    },
    "laptop": {},
    "full": {
        "images": 4000,
        "finetune.rounds": 20,
        "finetune.steps": 40,
        "finetune.lr": 3e-4,  # set by hand; notebook 11 looks around it, on val, and reports what comes first
        "finetune.lr_min": 3e-5,
        "finetune.precision": "float32",  # as that of imagenet
        "finetune.attack_precision": "bfloat16",
        "finetuning.seeds": 3,
        "finetuning.columns": TABLE2,
        "finetuning.images": 4000,
        "finetuning.wide_images": 12000,
        "finetuning.eps": (0.01, 0.03, 0.1),
        "finetuning.fresh": 12,
        "finetuning.reach_blocks": 8,
        "finetuning.variants": True,
        "finetuning.fixed_steps": 3000,
        "finetuning.keep": True,
        "finetuning.search_longer": (10, 20),
        "finetuning.search_few": (256, 1024),
        "finetuning.search_lr": (1e-5, 1e-4, 3e-4, 1e-3),
        "finetuning.search_eps": (0.03, 0.1, 0.3),
        "finetuning.search_limits": (1.0, 10.0),
        "finetuning.search_bases": (1, 2),
        "suite.c_images": 1000,
        "suite.costly_images": 200,
        "suite.cw_early_stop": True,  # as when what is kept was made
        "finetuning.objectives": ("nullspace", "nullspace_by_batch", *_EVERY[1:]),
        "robustness.images": 1000,
        "synthesis.starts": 3,
        "synthesis.noise.lr": 0.02,
        "synthesis.noise.steps": 400,
        "approximate.starts": 10,
        **_NOISE,
        **_CLOSURE,
    },
    "gpu": {
        "models": ("vit_small_patch32_224", "vit_base_patch32_224"),
        "weights": "train",
        "pretrain.size": 224,
        "pretrain.steps": 5000,
        "pretrain.batch": 256,
        "pretrain.images": 2**16,  # 10 GB on the GPU
        "pretrain.lr": 5e-4,
        **_PAPER,
        "finetune.precision": "bfloat16",
        "finetuning.seeds": 3,
        "finetuning.columns": TABLE2,
        "finetuning.images": 2000,
        "finetuning.eps": (0.01, 0.03, 0.1),
        "finetuning.objectives": _EVERY,
        "finetuning.seeded": ("nullspace", "plain", "random"),
        "finetuning.keep": True,
        "suite.c_images": 200,
        "suite.costly_images": 64,
        "suite.cw_early_stop": True,  # as when what is kept was made: at 224 px a weak attack
        "surrogate_weights": "train",
        "surrogate_pretrain.images": 2**14,
        "fingerprint.trained": 1,
        "fingerprint.steps": 2000,
        "images": 4000,
        **_NOISE,
        **_CLOSURE,
        "closure.judged_images": 512,
        "closure.images": 128,
        "closure.grid_images": 4,
        "approximate.starts": 1,
    },
    "imagenet": _IMAGENET,
    "imagenet_small": {
        **_IMAGENET,
        "pool": 768,
        "heldout": 192,
        "images": 400,
        "synthesis.lambdas": (0.01, 0.1, 0.3, 0.6, 1.0, 2.0),
        "synthesis.noise.steps": 100,
        "synthesis.noise.batch": 16,
        "approximate.eps": (0.03, 0.1),
        "approximate.starts": 1,
        "approximate.noise.limit": 0.5,
        "approximate.noise.lr": 0.02,
        "approximate.noise.steps": 120,
        "approximate.noise.batch": 16,
        "approximate.reach_images": 128,
        "closure.noises": 8,
        "closure.noise.limit": 0.3,
        "closure.noise.lr": 0.02,
        "closure.noise.steps": 200,
        "closure.noise.batch": 16,
        "closure.judged_images": 100,
        "closure.images": 100,
        "closure.grid_images": 8,
        "closure.step": 0.25,
        "closure.grid_step": 0.5,
        "closure.pairs": 10,
        "closure.control_pairs": 4,
        "closure.spans": (1, 2, 4, 8),
        "closure.draws": 40,
        "watermark.saliency_images": 32,
        "robustness.eps": (0.0, 0.25 / 255, 1 / 255, 4 / 255, 16 / 255),
        "robustness.images": 40,
        "robustness.authors_images": 80,
        "suite.images": 200,
        "suite.c_images": 0,
        "suite.costly_images": 16,
        "suite.batch": 40,
        "suite.patchfool_steps": 100,
        "suite.cw_steps": 30,
        "finetune.rounds": 3,
        "finetune.steps": 10,
        "finetune.batch": 16,
        "finetune.pool": 448,
        "finetune.heldout": 128,
        "finetune.precision": "auto",
        "finetune.noise.limit": 0.3,  # from .5 no noise gets inside eps = .03 on held-out images
        "finetune.noise.lr": 0.02,
        "finetune.noise.steps": 200,
        "finetune.noise.batch": 16,
        "finetuning.objectives": ("nullspace", "plain", "random"),
        "finetuning.columns": ("clean", "fgsm", "damagenet", "c"),
        "finetuning.images": 100,
        "finetuning.trace_images": 80,
        "finetuning.eps": (0.03,),
        "finetuning.fresh": 1,
        "finetuning.fixed_steps": 0,
        "finetuning.variants": False,
        "finetuning.keep": False,
    },
}

REAL = ("imagenet", "imagenet_small")  # profiles that read folders of images; the first is the paper's protocol


def resolve(profile: str, run_name: str = "", overrides: dict[str, Any] | None = None) -> Settings:
    """The settings of a profile, with overrides by dotted name such as {"synthesis.noise.steps": 100}.

    At the profiles that read folders these default to $NSLIB_IMAGENET and $NSLIB_WEIGHTS, and with a folder of weights
    the models to the plain ViTs that it holds, and the surrogate's weights to that folder if they are there.

    Raises:
        ValueError: unknown profile or name, a run name that is a path, or a value of another type than the default's.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {profile!r}")
    overrides = overrides or {}
    if not isinstance(overrides, dict) or not all(isinstance(name, str) for name in overrides):
        raise ValueError(
            'overrides must be settings by dotted name, such as {"images": 500}, with papermill '
            f"-y '{{overrides: {{images: 500}}}}', got {overrides!r}"
        )
    if run_name and not (isinstance(run_name, str) and Path(run_name).name == run_name.strip() and run_name != ".."):
        raise ValueError(f"run_name must name one folder, which goes under figures/ and runs/, got {run_name!r}")
    chosen = {**PROFILES[profile], **(_real_input(overrides) if profile in REAL else overrides)}
    return overridden(Settings(profile=profile, run_name=run_name or profile), chosen)


def _real_input(overrides: dict[str, Any]) -> dict[str, Any]:
    """Fill in folders from the environment, and models from the folder of weights."""
    environment = {"data.root": os.environ.get("NSLIB_IMAGENET"), "weights": os.environ.get("NSLIB_WEIGHTS")}
    chosen = {k: v for k, v in environment.items() if v} | overrides
    weights = chosen.get("weights", "")
    if weights in ("", *WEIGHTS) or not (folder := Path(weights).expanduser()).is_dir():
        return chosen
    surrogate = chosen.get("surrogate", _IMAGENET["surrogate"])
    if "surrogate_weights" not in chosen and surrogate and (folder / f"{surrogate}.safetensors").is_file():
        chosen["surrogate_weights"] = str(folder)
    if "models" not in chosen:
        found = sorted(p.stem for p in folder.glob("vit_*.safetensors"))
        if not found:
            raise ValueError(f"no vit_*.safetensors in {folder}: name the models with --set models=TAG")
        usual = [name for name in _IMAGENET["models"] if name in found]  # in their order: notebooks look at the first
        chosen["models"] = (*usual, *(name for name in found if name not in usual))
    return chosen
