"""The command line: `nslib COMMAND --help`."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import tyro

from nslib.config import DataConfig, NoiseConfig
from nslib.profiles import resolve

Setting = Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="NAME=VALUE")]


def _overrides(settings: tuple[str, ...], **options: str) -> dict:
    """`synthesis.noise.steps=100` -> {"synthesis.noise.steps": 100}; values as `_value` reads them."""
    chosen = {name.replace("__", "."): value for name, value in options.items() if value}
    for item in settings:
        name, equals, text = item.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE such as images=500, got {item!r}")
        chosen[name] = _value(text)
    # Notebooks run in a folder of their own, where a relative path would lead elsewhere.
    return {k: _absolute(v) if k.startswith("data.") or k.endswith("weights") else v for k, v in chosen.items()}


def _value(text: str):
    """JSON where it can be read as such, a fraction such as 8/255 as its value, else the text itself."""
    if re.fullmatch(r"\d+/[1-9]\d*", text):
        return float(Fraction(text))
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _absolute(path):
    """The full path of a file or folder that exists; anything else as it is."""
    if not (isinstance(path, str) and path and Path(path).expanduser().exists()):
        return path
    return str(Path(path).expanduser().resolve())


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
    outcomes = run(list(notebooks), profile, run_name=run_name, overrides=_overrides(set, **options), force=force)
    return int(any(o.status == FAILED for o in outcomes))


def pretrain(
    profile: str = "laptop", model: str = "", target: str = "", device: str = "auto", set: Setting = ()
) -> int:
    """Train a model on the embedded data from scratch; a second call goes on where a killed one was.

    Args:
        profile: whose training settings to take.
        model: shapes_vit, a timm tag, or surrogate_cnn, on which attacks are made; default: the profile's first.
        target: the safetensors file to write; default: runs/pretrain/<profile>/<model>.safetensors.
        device: auto, cpu, cuda or mps.
        set: override a setting of the training, such as --set steps=500 lr=0.001.
    """
    from nslib.pretrain import pretrain as train
    from nslib.runtime import pick_device, runs_path

    training = "surrogate_pretrain" if model == "surrogate_cnn" else "pretrain"
    settings = resolve(profile, overrides={f"{training}.{k}": v for k, v in _overrides(set).items()})
    cfg = replace(getattr(settings, training), model=model or settings.models[0])
    path = Path(target) if target else runs_path("pretrain") / profile / f"{cfg.model}.safetensors"
    record = train(cfg, path, device=pick_device(device))
    print(f"{path}: {record['minutes']} minutes; top-1 of {record['n']} images a split:")
    for split, top1 in record["top1"].items():
        print(f"  {split:10} {100 * top1:5.1f} %")
    return 0


def nulldim(model: str = "shapes_vit", weights: str = "", tol: float | None = None) -> int:
    """Print the dimension of the nullspace of a model's patch embedding.

    Args:
        model: shapes_vit or a timm tag.
        weights: shipped, pretrained, random, a safetensors file, or a folder of <model>.safetensors.
        tol: singular values up to this count as zero; default: by the precision of the weights.
    """
    from nslib.models import load_model
    from nslib.nullspace.patch import PatchNullspace

    null = PatchNullspace(load_model(model, weights or None), tol=tol)
    width, pixels = null.matrix.shape
    print(f"{model}: patch {null.patch_shape} = {pixels} -> width {width}")
    print(f"rank {null.rank} + null dimension {null.dim} = {pixels}")
    values = null.singular_values
    print(f"singular values {values[0]:.4g} ... {values[-1]:.4g}, counted as zero up to {null.tol:.3g}")
    return 0


def noise(
    model: str = "shapes_vit",
    weights: str = "",
    imagenet: str = "",
    pool: int = 1024,
    heldout: int = 256,
    seed: int = 0,
    device: str = "auto",
    out: str = "noise.safetensors",
    noise: NoiseConfig = NoiseConfig(),
) -> int:
    """Learn a noise that a model does not notice, and save it with its record.

    Args:
        model: shapes_vit or a timm tag.
        weights: shipped, pretrained, random, a safetensors file, or a folder of <model>.safetensors.
        imagenet: ImageNet-style folder whose train/ is read; default: the embedded data, for models that fit it.
        pool: images to learn from.
        heldout: further images, for the stopping test.
        seed: of start, batches and data.
        device: auto, cpu, cuda or mps.
        out: the safetensors file to write; its record goes beside it as .json.
        noise: how it is learned.
    """
    from safetensors.torch import save_file

    from nslib.data.source import open_source
    from nslib.models import load_model
    from nslib.nullspace.encoder import learn_noise
    from nslib.nullspace.membership import make_pool
    from nslib.progress import noise_bar
    from nslib.runtime import atomic_path, generator, pick_device, run_record, to_json, write_text

    vit = load_model(model, weights or None, device=pick_device(device))
    data = DataConfig(kind="folder" if imagenet else "shapes", root=imagenet, seed=seed)
    images, _ = open_source(data, vit).take("train", pool + heldout)
    with noise_bar(noise) as on_step:
        learned = learn_noise(
            vit, make_pool(vit, images, heldout=heldout), noise, generator=generator(seed), on_step=on_step
        )
    facts = {k: v for k, v in asdict(learned).items() if k not in ("noise", "trace")}
    with atomic_path(Path(out)) as partial:
        save_file({"noise": learned.noise.cpu().contiguous()}, partial)
    record = run_record(noise, model=model, data=data, pool=pool, heldout=heldout, seed=seed, result=facts)
    write_text(Path(out).with_suffix(".json"), to_json(record) + "\n")
    print(f"{out}: " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items()))
    return 0


def evaluate(
    model: str = "shapes_vit",
    weights: str = "",
    columns: str = "",
    imagenet: str = "",
    profile: str = "",
    against: str = "",
    protocol: str = "pixels",
    dry_run: bool = False,
    device: str = "auto",
    out: str = "",
    set: Setting = (),
) -> int:
    """Measure a model the way Table 2 does; a second call goes on where a killed one was, also under torchrun.

    Args:
        model: shapes_vit or a timm tag.
        weights: shipped, pretrained, random, a safetensors file, or a folder of <model>.safetensors.
        columns: such as clean,fgsm,c; default: those of Table 2, pgd and autoattack.
        imagenet: ImageNet-style folder with val/; its relatives beside it or by --set data.a=FOLDER and so on.
        profile: whose numbers of images to take; default: laptop, or imagenet with --imagenet.
        against: weights of another model of this architecture, for differences on the same images.
        protocol: pixels, or authors: FGSM and PGD on normalised images, as the paper's code does.
        dry_run: only list columns, images, forward passes and minutes.
        device: auto, cpu, cuda or mps.
        out: write the table to this CSV file, its record beside it as .json.
        set: override a setting, such as --set suite.images=500 suite.fgsm_eps=4/255.
    """
    from nslib.evaluate.comparison import differences
    from nslib.evaluate.suite import dry_run as estimate
    from nslib.evaluate.suite import evaluate_model
    from nslib.experiment import open_bench, open_model
    from nslib.processes import processes
    from nslib.runtime import run_record, to_json, write_text

    profile = profile or ("imagenet" if imagenet else "laptop")
    options = {
        "data__root": imagenet,
        "weights": weights,
        "models": model,
        "suite__protocol": protocol,
        "suite__columns": columns.split(",") if columns else "",
        "device": "" if device == "auto" else device,
    }
    settings = resolve(profile, overrides=_overrides(set, **options))
    team = processes(settings.device)
    settings = replace(settings, device=str(team.device))
    bench = open_bench(settings)
    if dry_run:
        planned = estimate(bench)
        print(planned.round(2).to_string(index=False))
        print(f"{planned.minutes.sum():.1f} minutes on one process as fast as this one")
        return 0
    share = {"rank": team.rank, "world": team.world, "gather": team.gather}
    evaluation = evaluate_model(bench.model, bench.source, settings.suite, surrogate=bench.surrogate, **share)
    table = evaluation.table()
    if against:
        other = open_model(replace(settings, weights=_absolute(against)))
        base = evaluate_model(other, bench.source, settings.suite, surrogate=bench.surrogate, **share)
        table = table.merge(differences(evaluation, base), on="column", how="left")
    if team.rank == 0:
        print(table.round(2).to_string(index=False))
        if out:
            write_text(Path(out), table.to_csv(index=False))
            write_text(Path(out).with_suffix(".json"), to_json(run_record(settings, against=Path(against))) + "\n")
    return 0


def notebooks() -> int:
    """For maintainers: execute the sources in paper_nb/*.py at the smoke profile and write the .ipynb beside them."""
    from nslib.reproduce import execute_sources

    with tempfile.TemporaryDirectory() as empty:
        os.environ |= {"NSLIB_STORE": f"{empty}/store", "NSLIB_FIGURES": f"{empty}/figures"}
        execute_sources()
    return 0


COMMANDS = {f.__name__: f for f in (reproduce, evaluate, pretrain, nulldim, noise, notebooks)}


def main() -> int:
    """Run a command; mistakes of the user are one line, not a traceback."""
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # else every kernel prints the debugger's warning
    try:
        return tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="nslib", description=__doc__)
    except (ValueError, TypeError, KeyError, OSError, FloatingPointError) as error:
        if os.environ.get("NSLIB_TRACEBACK"):
            raise
        print(f"nslib: {error}", file=sys.stderr)
        return 2
