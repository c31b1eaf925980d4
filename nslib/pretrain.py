"""Train a classifier on `shapes` from scratch; a killed run goes on and ends with the weights of an unbroken one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from nslib.attacks.gradient import pgd
from nslib.attacks.surrogate import SurrogateCNN, load_surrogate
from nslib.config import PretrainConfig, SurrogateConfig
from nslib.data.rendered import Rendered
from nslib.data.shapes import CLASSES, SPLITS, VERSION, Batch, render
from nslib.machine.makers import only_maker
from nslib.models import build_model, load_model
from nslib.runtime import atomic_path, drawn_from, generator, run_record, to_json, write_text
from nslib.store import check_same, load_state, save_state, sweep
from nslib.vit.staged import batched_logits
from nslib.vit.weights import check_target

_WITHOUT_EFFECT = ("checkpoint_every", "report_images")  # settings on which no weight depends


def pretrain(cfg: PretrainConfig, target: Path, *, device: str | torch.device = "cpu", progress: bool = True) -> dict:
    """Train and save `target` (safetensors) with its record `target.with_suffix(".json")` beside it.

    The state is saved every `cfg.checkpoint_every` steps beside the target and removed at the end. Step s sees the
    images s * batch ... of split train as they are or, with cfg.images, a draw from the first so many, see `Rendered`.
    Where the target was trained with the same settings already it is only measured again; any other is refused, not
    replaced. A second run of the same target waits for the first. A `SurrogateConfig` trains the surrogate CNN.

    Returns:
        the record: configuration, steps, minutes, accuracy on every split with its n, versions.
    Raises:
        ValueError: the target is no .safetensors; it, or a saved state, was made with other settings or cannot be read.
        OSError: the disk is full; the state saved before is kept.
        FloatingPointError: the loss is not finite; names the step.
    """
    target = Path(target).expanduser()
    check_target(target)
    with only_maker(target):
        minutes = _minutes_spent(cfg, target)
        if minutes is None:
            minutes = _train(cfg, target, device, progress)
        model = load_trained(cfg, target, device)
        splits, images = [s for s in SPLITS if s != "train"], range(cfg.report_images)
        top1 = {s: accuracy(model, *render(s, images, size=cfg.size, device=device)) for s in splits}
        record = run_record(
            cfg, steps=cfg.steps, minutes=round(minutes, 1), top1=top1, n=len(images), shapes_version=VERSION
        )
        write_text(target.with_suffix(".json"), to_json(record) + "\n")
        _state_file(target).unlink(missing_ok=True)
        return record


def load_trained(cfg: PretrainConfig, path: Path, device: str | torch.device) -> nn.Module:
    """The model of a training from its weights: a `StagedViT`, or the surrogate CNN."""
    if isinstance(cfg, SurrogateConfig):
        return load_surrogate(path, num_classes=len(CLASSES), size=cfg.size, device=device)
    return load_model(cfg.model, path, num_classes=len(CLASSES), img_size=cfg.size, device=device)


def identity_of(cfg: PretrainConfig) -> PretrainConfig:
    """By what trainings are told apart: no weight depends on how often a state is saved and how many images report."""
    return replace(cfg, **{name: getattr(PretrainConfig, name) for name in _WITHOUT_EFFECT})


def _settings_of(cfg: PretrainConfig) -> dict[str, Any]:
    """What must be the same for a saved state to go on: settings, and the version of the images."""
    return asdict(identity_of(cfg)) | {"data": VERSION}


def _state_file(target: Path) -> Path:
    return target.with_suffix(".training.pt")


def _minutes_spent(cfg: PretrainConfig, target: Path) -> float | None:
    """How long the weights that lie there were trained; None where there are none, or a kill left them without record.

    On how many images they were measured, and how often they were saved, does not matter.

    Raises:
        ValueError: they were trained with other settings or by something else, or the record is none of a training.
    """
    record, remedy = target.with_suffix(".json"), "remove it or take another target"
    if not target.is_file():
        return None
    if not record.is_file():
        if not _state_file(target).is_file():
            raise ValueError(f"{target} has no record beside it, so that it was not trained here: {remedy}")
        return None
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        passed = {name: getattr(cfg, name) for name in _WITHOUT_EFFECT}
        made = {"images": 0} | found["config"] | passed | {"data": found["shapes_version"]}
        minutes = found["minutes"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{record} is no record of a training ({type(error).__name__}: {error}): {remedy}") from error
    check_same(target, made, asdict(cfg) | {"data": VERSION}, remedy=remedy)
    return minutes


def _train(cfg: PretrainConfig, target: Path, device: str | torch.device, progress: bool) -> float:
    """Train from scratch, or on from a saved state, and save the weights; returns minutes."""
    state_file = _state_file(target)
    sweep(target, state_file)
    with drawn_from(cfg.seed):
        if isinstance(cfg, SurrogateConfig):
            model = network = SurrogateCNN(len(CLASSES), cfg.size)
        else:
            model = build_model(cfg.model, num_classes=len(CLASSES), img_size=cfg.size)
            network = model.vit
    model.to(device).train()
    skip = getattr(network, "no_weight_decay", tuple)()
    groups = param_groups_weight_decay(network, cfg.weight_decay, no_weight_decay_list=skip)
    optimizer = torch.optim.AdamW(groups, lr=cfg.lr)
    rise = 0.4 if cfg.steps == 5 else 0.2  # of the steps; torch divides by zero where that is a single one
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, cfg.lr, total_steps=cfg.steps, pct_start=rise)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    first, seconds = _restore(state_file, cfg, parts)
    draw = _drawn(cfg, device)

    started = time.monotonic() - seconds
    for step in tqdm(
        range(first, cfg.steps), initial=first, total=cfg.steps, desc=f"pretrain {cfg.model}", disable=not progress
    ):
        images, labels = draw(step)
        if isinstance(cfg, SurrogateConfig) and step >= cfg.steps - cfg.fgsm_steps:
            images = _fgsm_images(model, images, labels, cfg, step)
        with _fast(device):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
        if not torch.isfinite(loss + norm):
            saved = f", and remove {state_file}, which was saved with this one" if state_file.is_file() else ""
            raise FloatingPointError(
                f"loss {loss.item()}, gradient norm {norm.item()} at step {step} of {cfg}: lower lr{saved}"
            )
        optimizer.step()
        schedule.step()
        if (step + 1) % cfg.checkpoint_every == 0 or step + 1 == cfg.steps:  # the last: what follows may be killed too
            state = {name: part.state_dict() for name, part in parts.items()}
            save_state(state_file, _settings_of(cfg), state | {"step": step + 1, "seconds": time.monotonic() - started})

    with atomic_path(target) as partial:
        save_file({k: v.cpu().contiguous() for k, v in network.state_dict().items()}, partial)
    return (time.monotonic() - started) / 60


def _drawn(cfg: PretrainConfig, device: str | torch.device) -> Callable[[int], Batch]:
    """Step -> its batch."""
    if cfg.images:
        return Rendered(cfg.images, cfg.batch, seed=cfg.seed, size=cfg.size, device=device).draw

    def fresh(step: int) -> Batch:
        indices = torch.arange(step * cfg.batch, (step + 1) * cfg.batch)
        return render("train", indices, seed=cfg.seed, size=cfg.size, device=device)

    return fresh


def _fast(device: str | torch.device) -> AbstractContextManager:
    """bfloat16 on a GPU: these weights are to be had, not compared."""
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=kind == "cuda")


def _fgsm_images(model: nn.Module, images: Tensor, labels: Tensor, cfg: SurrogateConfig, step: int) -> Tensor:
    """One step of 1.25 eps from a random start, as in fast adversarial training (arXiv:2001.03994)."""
    model.eval()
    draws = generator(cfg.seed + step)
    found = pgd(model, images, labels, eps=cfg.fgsm_eps, step=1.25 * cfg.fgsm_eps, steps=1, random_start=True,
                generator=draws)  # fmt: skip
    model.train()
    return found


def accuracy(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, *, batch: int = 256) -> float:
    """Share of images (B, C, H, W) whose largest logit is the label's."""
    return (batched_logits(model, images, batch=batch).argmax(1) == labels).sum().item() / len(labels)


def _restore(path: Path, cfg: PretrainConfig, parts: dict) -> tuple[int, float]:
    """Load a saved state into the parts; returns (next step, seconds spent)."""
    if not path.is_file():
        return 0, 0.0
    saved = load_state(path)
    made = {"data": VERSION} | saved["settings"]  # states of before told no version
    check_same(path, made, _settings_of(cfg), remedy="remove it to start anew")
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return saved["step"], saved["seconds"]
