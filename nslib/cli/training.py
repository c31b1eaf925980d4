"""Commands that train models and measure them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from nslib.cli.options import Setting, absolute_weights, check_out, overrides, settings_of, show

# Settings that evaluation reads
_EVALUATED = ("suite.", "data.", "surrogate", "pretrain.", "models", "weights", "img_size", "seed", "device")


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
    from nslib.profiles import resolve
    from nslib.runtime import pick_device, runs_path

    training = "surrogate_pretrain" if model == "surrogate_cnn" else "pretrain"
    chosen = {f"{training}__model": model or resolve(profile).models[0]}
    cfg = getattr(settings_of(profile, "", "auto", set, within=training, reads=(f"{training}.",), **chosen), training)
    path = Path(target) if target else runs_path("pretrain") / profile / f"{cfg.model}.safetensors"
    record = train(cfg, path, device=pick_device(device))
    print(f"{path}: {record['minutes']} minutes; top-1 of {record['n']} images a split:")
    for split, top1 in record["top1"].items():
        print(f"  {split:10} {100 * top1:5.1f} %")
    return 0


def evaluate(
    model: str = "shapes_vit",
    weights: str = "",
    columns: str = "",
    imagenet: str = "",
    profile: str = "",
    against: str = "",
    protocol: str = "pixels",
    img_size: int = 0,
    dry_run: bool = False,
    device: str = "auto",
    out: str = "",
    set: Setting = (),
) -> int:
    """Measure a model the way Table 2 does; a second call goes on where a killed one was, also under torchrun.

    Args:
        model: shapes_vit or a timm tag.
        weights: shipped, pretrained, random, a safetensors file, a folder of <model>.safetensors, or a training
            checkpoint (.pth, .pt, .tar) such as EasyRobust's.
        columns: such as clean,fgsm,c or cue_conflict; default: those of Table 2, pgd and autoattack.
        imagenet: ImageNet-style folder with val/; its relatives beside it or by --set data.a=FOLDER and so on.
        profile: whose numbers of images to take; default: laptop, or imagenet with --imagenet.
        against: weights of another model of this architecture, for differences on the same images.
        protocol: pixels, or authors: FGSM and PGD on normalised images, as the paper's code does.
        img_size: side of the model's images in pixels; default: that of the weights.
        dry_run: only list columns, images, forward passes and minutes.
        device: auto, cpu, cuda or mps.
        out: write the table to this CSV file, its record beside it as .evaluation.json.
        set: override a setting, such as --set suite.images=500 suite.fgsm_eps=4/255.
    """
    from nslib.evaluate.columns import check_columns
    from nslib.evaluate.comparison import differences
    from nslib.evaluate.suite import dry_run as estimate
    from nslib.evaluate.suite import evaluate_model
    from nslib.machine.processes import processes
    from nslib.report.gather import OF_COMMAND
    from nslib.report.record import portable, without_paths
    from nslib.runtime import run_record, to_json, write_text
    from nslib.study.experiment import barely_trained, open_bench, open_model

    path = check_out(out, ".csv", beside=OF_COMMAND) if out else None
    settings = settings_of(
        profile, imagenet, device, set, reads=_EVALUATED, weights=weights, models=model, img_size=img_size,
        suite__protocol=protocol,
        suite__columns=[c.strip() for c in columns.split(",")] if columns else "",
    )  # fmt: skip
    check_columns(settings.suite.columns)  # before a model is fetched or trained
    if "damagenet" not in settings.suite.columns:
        settings = replace(settings, surrogate="")  # no image is made on it
    settings = barely_trained(settings) if dry_run else settings
    with processes(settings.device) as (share, place):
        settings = replace(settings, device=str(place))
        bench = open_bench(settings)
        other = against and bench.of(open_model(replace(settings, weights=absolute_weights(against))))
        if dry_run:
            planned = estimate(bench)
            if share.rank == 0:
                show(planned)
                minutes, models = planned.minutes.sum(), ", for both models" if other else ""
                print(f"{2 * minutes if other else minutes:.1f} minutes on one process as fast as this one{models}")
            return 0
        found = evaluate_model(bench.model, bench.source, settings.suite, surrogate=bench.surrogate, share=share)
        if not found.hits:
            raise FileNotFoundError(f"no column can be measured: {'; '.join(dict.fromkeys(found.missing.values()))}")
        table = found.table()
        if other:
            base = evaluate_model(other.model, other.source, settings.suite, surrogate=other.surrogate, share=share)
            base = replace(base, model=Path(against).stem)
            table = table.merge(differences(found, base).drop(columns=["n", "seeds"]), on="column", how="left")
            ratio = f"ratio to {base.model}"
            table = table.drop(columns=[ratio] if table[ratio].isna().all() else [])  # it is of corruptions alone
    if share.rank == 0:
        show(table)
        if path:
            record = run_record(portable(settings), against=Path(against))
            write_text(path, without_paths(table.to_csv(index=False), settings))
            # Beside weights of this name lies a record of their own, <name>.json.
            write_text(path.with_suffix(OF_COMMAND), to_json(record) + "\n")
    return 0


def finetune(
    model: str = "shapes_vit",
    weights: str = "",
    objective: str = "nullspace",
    imagenet: str = "",
    profile: str = "",
    target: str = "",
    num_classes: int = 0,
    img_size: int = 0,
    dry_run: bool = False,
    device: str = "auto",
    set: Setting = (),
) -> int:
    """Finetune a model by Algorithm 1, or a control; a second call goes on where a killed one was.

    Two processes share each batch after `torchrun --standalone --nproc-per-node 2 -m nslib finetune ...`; the head of
    nslib/machine/processes.py tells of several machines, accelerate and notebooks.

    Args:
        model: shapes_vit or a timm tag.
        weights: shipped, pretrained, random, a safetensors file, a folder of <model>.safetensors, or a training
            checkpoint (.pth, .pt, .tar) such as EasyRobust's.
        objective: nullspace, nullspace_by_batch, plain, random, random_boundary, permuted, madry, madry_authors,
            trades, mixup, randaugment, augmix or sam.
        imagenet: ImageNet-style folder with train/; default: the embedded data.
        profile: whose settings to take; default: laptop, or imagenet with --imagenet.
        target: the safetensors file to write, its record and log beside it; default:
            runs/finetune/<profile>/<model>_<objective>.safetensors.
        num_classes: give the model an untrained head, unless its own is of so many classes; default: its own.
        img_size: side of its images in pixels, for which its position embedding is resampled; default: that of the
            weights.
        dry_run: only tell images, steps, forward passes, memory and hours, from a round of two steps and three updates.
        device: auto, cpu, cuda or mps.
        set: override a setting of the finetuning, such as --set rounds=20 noise.eps=0.01.
    """
    from nslib.data.source import open_source
    from nslib.finetune.cost import cost_told, split_told
    from nslib.finetune.estimate import estimate
    from nslib.finetune.objectives import recipe_of, unheeded
    from nslib.finetune.rounds import finetune_model
    from nslib.finetune.updates import average_told
    from nslib.machine.processes import processes
    from nslib.machine.progress import finetune_bar
    from nslib.models import reset_head
    from nslib.runtime import runs_path
    from nslib.study.experiment import barely_trained, open_model
    from nslib.vit.weights import check_target

    alone = {"finetune__objective": objective, "finetuning__objectives": ("plain", "nullspace")}  # a profile's other
    # objectives, some of which would refuse what this one may be told, are none of this run's
    settings = settings_of(
        profile, imagenet, device, set, within="finetune", weights=weights, models=model, img_size=img_size, **alone
    )
    settings = barely_trained(settings) if dry_run else settings
    cfg = settings.finetune
    path = Path(target or runs_path("finetune") / settings.profile / f"{model}_{cfg.objective}.safetensors")
    recipe_of(cfg)  # before a model is fetched or trained
    check_target(path.expanduser())
    prefix = "finetune."
    named = [name.removeprefix(prefix) for name in overrides(set, within="finetune") if name.startswith(prefix)]
    with processes(settings.device) as (share, place):
        if share.rank == 0:
            for told in filter(None, (*unheeded(cfg, named), average_told(cfg))):
                print(f"nslib: {told}", file=sys.stderr)
        vit = open_model(replace(settings, device=str(place)))
        if num_classes:
            reset_head(vit, num_classes, seed=settings.seed)
        source = open_source(settings.data, vit)
        if dry_run:
            planned = estimate(vit, source, cfg, share=share)
            if share.rank == 0:
                print(*planned.lines(), sep="\n")
            return 0
        with finetune_bar(cfg, f"{cfg.objective} {model}", disable=share.rank > 0) as on_step:
            done = finetune_model(vit, source, cfg, target=path, share=share, on_step=on_step)
    if share.rank == 0:
        record, units = done.record, done.record["units"]
        there = ", was there already" if done.found else ""
        print(f"{path}: {record['minutes']} minutes, {cfg.rounds} rounds of {cfg.steps} updates{there}")
        mean, std = ([round(v, 4) for v in part.flatten().tolist()] for part in (done.model.mean, done.model.std))
        print(f"for timm: images {done.model.image_shape}, mean {mean}, std {std}")
        print(split_told(cfg, source.count("train")))
        print(f"forward passes: {units['noise']:,.0f} for noise, {units['updates']:,.0f} for updates")
        print(f"cost: {cost_told(sum(units.values()), source.count('train'))}")
        for number in record["missed_eps"]:
            print(f"round {number}: noise did not reach eps = {cfg.noise.eps} in {cfg.noise.steps} steps")
    return 0
