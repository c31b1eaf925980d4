"""Commands that make the paper: its notebooks, run headless."""

from __future__ import annotations

import os
import tempfile
from typing import Annotated

import tyro

from nslib.cli.options import Setting, overrides


def reproduce(
    notebooks: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    profile: str = "laptop",
    run_name: str = "",
    imagenet: str = "",
    weights: str = "",
    device: str = "auto",
    set: Setting = (),
    force: bool = False,
) -> int:
    """Run the notebooks of the paper headless.

    Args:
        notebooks: names or numbers, such as 02; default: all.
        profile: smoke (4 min on 2 cores), laptop, full, gpu or imagenet.
        run_name: folder under runs/ and figures/; default: the profile.
        imagenet: ImageNet-style folder with train/ and val/ (profile imagenet); default: $NSLIB_IMAGENET.
        weights: pretrained, random, a safetensors file, or a folder of <model>.safetensors; default: $NSLIB_WEIGHTS.
        device: auto, cpu, cuda or mps.
        set: override a setting of the profile, such as --set images=500 synthesis.noise.steps=100.
        force: run also what is done and unchanged.
    """
    from nslib.reproduce import FAILED
    from nslib.reproduce import reproduce as run

    device_option = "" if device == "auto" else device
    options = {"data__root": imagenet, "weights": weights, "device": device_option}
    if imagenet and profile != "imagenet":
        raise ValueError(f"--imagenet goes with --profile imagenet, got profile {profile!r}")
    outcomes = run(list(notebooks), profile, run_name=run_name, overrides=overrides(set, **options), force=force)
    return int(any(o.status == FAILED for o in outcomes))


def notebooks() -> int:
    """For maintainers: execute the sources in paper_nb/*.py at the smoke profile and write the .ipynb beside them."""
    from nslib.reproduce import execute_sources

    with tempfile.TemporaryDirectory() as empty:
        os.environ |= {"NSLIB_STORE": f"{empty}/store", "NSLIB_FIGURES": f"{empty}/figures"}
        execute_sources()
    return 0
