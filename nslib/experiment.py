"""From settings to the objects that a notebook works on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from filelock import FileLock

from nslib.config import Settings
from nslib.data.source import Source, open_source
from nslib.models import StagedViT, load_model
from nslib.nullspace.membership import CleanPass, Pool, clean_pass, make_pool
from nslib.pretrain import pretrain
from nslib.runtime import pick_device, store_path
from nslib.store import digest


@dataclass(frozen=True)
class Experiment:
    """A model, its data set, a pool of training images for learning noise, and other images to report on."""

    model: StagedViT
    source: Source
    pool: Pool
    clean: CleanPass


def open_model(settings: Settings, name: str | None = None) -> StagedViT:
    """A model of the settings, by default the first; with weights `train` it is trained now unless the store has it."""
    name = name or settings.models[0]
    device = pick_device(settings.device)
    if settings.weights != "train":
        return load_model(name, settings.weights, seed=settings.seed, device=device)
    cfg = replace(settings.pretrain, model=name)
    target = store_path() / "pretrain" / digest(cfg) / f"{name}.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_file():
            pretrain(cfg, target, device=device)
    return load_model(name, target, num_classes=10, img_size=cfg.size, device=device)


def open_experiment(settings: Settings, name: str | None = None) -> Experiment:
    """Model, data, pool and reported images. Pool and held-out part are disjoint pieces of train, the rest is val."""
    model = open_model(settings, name)
    source = open_source(settings.data, model)
    learning, _ = source.take("train", settings.pool + settings.heldout)
    reported, _ = source.take("val", settings.images)
    return Experiment(model, source, make_pool(model, learning, heldout=settings.heldout), clean_pass(model, reported))
