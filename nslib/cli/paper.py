"""Commands that make the paper: its notebooks, run headless."""

from __future__ import annotations

import math
import os
import tempfile
from typing import Annotated

import tyro

from nslib.cli.options import Setting, overrides_of, settings_of


def reproduce(
    notebooks: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    profile: str = "laptop",
    run_name: str = "",
    imagenet: str = "",
    weights: str = "",
    device: str = "auto",
    set: Setting = (),
    force: bool = False,
    minutes: float = math.inf,
    jobs: int = 0,
    dry_run: bool = False,
) -> int:
    """Run the notebooks of the paper headless. The exit status is 1 if one failed, 3 if the time was up before the end.

    Profile imagenet is the paper's protocol, for a GPU; imagenet_small asks the same of a few hundred images, for two
    cores.

    Args:
        notebooks: names or numbers, such as 02; default: all.
        profile: smoke (2 to 4 min on 2 cores), laptop, full, gpu, imagenet or imagenet_small.
        run_name: folder under runs/ and figures/; default: the profile.
        imagenet: ImageNet-style folder with train/ and val/ (profiles imagenet...); default: $NSLIB_IMAGENET.
        weights: pretrained, random, a file, or a folder of <model>.safetensors; default: $NSLIB_WEIGHTS.
        device: auto, cpu, cuda or mps.
        set: override a setting of the profile, such as --set images=500 synthesis.noise.steps=100.
        force: run also what is done and unchanged; leave it out to go on from a call with minutes.
        minutes: stop after so many; the same command goes on from there.
        jobs: notebooks at a time; default: one a core, at most 4, and one on a GPU.
        dry_run: only tell images, noise steps, hours and memory of the whole profile, by a few steps and batches.
    """
    from nslib.profiles import resolve
    from nslib.report.gather import recorded_runs
    from nslib.reproduce import FAILED, LEFT
    from nslib.reproduce import reproduce as run

    chosen = overrides_of(profile, imagenet, device, set, weights=weights)
    if dry_run:
        from nslib.study.forecast import forecast

        if notebooks:
            raise ValueError(f"--dry-run tells of a whole profile: name no notebooks, got {', '.join(notebooks)}")
        planned = forecast(resolve(profile, run_name, chosen))
        print(planned.round(2).fillna("").to_string(index=False))
        least, noise, memory = planned.hours.sum(), planned.noise_hours.sum(), planned.memory.max()
        print(f"{least:.1f} hours, and at most {noise:.1f} for noise, if none is inside eps before its last step")
        print(f"{memory:.1f} GB of memory beside Python and torch; all as measured now on this machine")
        return 0
    outcomes = run(
        list(notebooks), profile, run_name=run_name, overrides=chosen, force=force, minutes=minutes, jobs=jobs
    )
    if (name := run_name or profile) in recorded_runs():
        from nslib.report.page import write_page

        print(f"\n{write_page(name)}")
    statuses = {o.status for o in outcomes}
    return 1 if FAILED in statuses else 3 if LEFT in statuses else 0


def prepare(
    profile: str = "laptop",
    run_name: str = "",
    imagenet: str = "",
    weights: str = "",
    device: str = "auto",
    set: Setting = (),
    jobs: int = 0,
) -> int:
    """Make the models of a profile's notebooks, but those of the search of 11, many at a time, for `reproduce` to find.

    Exit status 1 if one failed. On a GPU twelve at a time take a fraction of the time of one after another, with
    NVIDIA's MPS started before (nvidia-cuda-mps-control -d). Stopped in any way, the same command goes on.

    Args:
        profile, run_name, imagenet, weights, device, set: as of `reproduce`.
        jobs: processes at a time; default: one a core, and 4 on a GPU.
    """
    from nslib.study.prepare import prepare as make

    settings = settings_of(profile, imagenet, device, set, run_name=run_name, weights=weights)
    return 1 if make(settings, jobs=jobs) else 0


def report(run_name: Annotated[str, tyro.conf.Positional] = "") -> int:
    """Write figures/RUN_NAME/index.html: every verdict, figure and table of a run, the paper's tables beside ours.

    Args:
        run_name: folder under figures/, such as laptop; default: every one that has records.
    """
    from nslib.report.gather import recorded_runs
    from nslib.report.page import write_page
    from nslib.runtime import figures_path

    names = [run_name] if run_name else recorded_runs()
    if not names:
        raise FileNotFoundError(f"no records in {figures_path('')}/<run name>/records: run `make reproduce` first")
    for name in names:
        print(write_page(name))
    return 0


def notebooks(names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()) -> int:
    """For maintainers: execute the sources in paper_nb/*.py at the smoke profile and write the .ipynb beside them.

    Args:
        names: names or numbers, such as 02; default: all.
    """
    from nslib.notebooks import execute_sources

    with tempfile.TemporaryDirectory() as empty:
        os.environ |= {"NSLIB_STORE": f"{empty}/store", "NSLIB_FIGURES": f"{empty}/figures"}
        execute_sources(names)
    return 0
