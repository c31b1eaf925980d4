"""From settings to the objects that a notebook works on."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from nslib.attacks.surrogate import SURROGATE_CNN, load_surrogate
from nslib.config import PretrainConfig, SurrogateConfig
from nslib.data.shapes import CLASSES
from nslib.data.shapes import VERSION as SHAPES_VERSION
from nslib.data.source import Source, open_source
from nslib.evaluate.bench import Bench
from nslib.models import build_model, load_model
from nslib.nullspace.membership import CleanPass, Pool, clean_pass, make_pool
from nslib.pretrain import identity_of, load_trained, pretrain
from nslib.runtime import data_path, in_store, pick_device
from nslib.settings import Settings
from nslib.store import digest
from nslib.vit.staged import StagedViT

_STRANGER_IMAGES = 200  # of each split for a stranger's record, whose accuracy is not the point


@dataclass(frozen=True)
class Experiment:
    """A model, its data set, a pool of training images for learning noise, and other images to report on."""

    model: StagedViT
    source: Source
    pool: Pool
    clean: CleanPass


def open_model(settings: Settings, name: str | None = None) -> StagedViT:
    """A model of the settings, by default the first; with weights `train` it is trained now unless the store has it.

    Raises:
        ValueError: with weights `train` a size of images that is not the one it is trained for.
    """
    name = name or settings.models[0]
    device = pick_device(settings.device)
    if settings.weights == "train":
        if settings.img_size not in (0, settings.pretrain.size):
            raise ValueError(f"img_size must be 0 with weights train, got {settings.img_size}: set pretrain.size")
        return _from_scratch(replace(settings.pretrain, model=name), device)
    return load_model(name, settings.weights, img_size=settings.img_size or None, seed=settings.seed, device=device)


def barely_trained(settings: Settings) -> Settings:
    """Settings by which to tell what they take: what they train from scratch is as fast after two steps."""
    barely = {"steps": 2, "images": 0, "report_images": 1}
    surrogate = replace(settings.surrogate_pretrain, fgsm_steps=0, **barely)
    return replace(settings, pretrain=replace(settings.pretrain, **barely), surrogate_pretrain=surrogate)


def open_stranger(settings: Settings, seed: int) -> StagedViT:
    """The first model's architecture trained on `shapes` from another seed: other images and another start.

    Beside shipped weights those of seeds 1 and 2 are shipped too; any other is trained now, as settings.fingerprint
    says, unless the store has it. Its name is the architecture's with the seed.

    Args:
        seed: added to the one of settings.pretrain.
    Raises:
        ValueError: seed 0, that of the model itself.
    """
    if seed == 0:
        raise ValueError("seed must not be 0, which is added to the model's own: a stranger needs another")
    study, own, device = settings.fingerprint, settings.pretrain, pick_device(settings.device)
    shipped = data_path("checkpoints", f"{settings.models[0]}_seed{own.seed + seed}.safetensors")
    if settings.weights == "shipped" and shipped.is_file():
        stranger = load_model(settings.models[0], shipped, img_size=settings.img_size or None, device=device)
    else:
        cfg = replace(own, model=settings.models[0], size=settings.img_size or own.size, steps=study.steps,
                      batch=study.batch, seed=own.seed + seed,
                      report_images=min(own.report_images, _STRANGER_IMAGES))  # fmt: skip
        stranger = _from_scratch(cfg, device)
    stranger.name = shipped.stem
    return stranger


def _from_scratch(cfg: PretrainConfig, device: torch.device) -> nn.Module:
    return load_trained(cfg, _trained(cfg, device), device)


def _trained(cfg: PretrainConfig, device: torch.device) -> Path:
    """The weights that these settings give, trained now unless the store has them."""
    target = in_store("pretrain", digest([identity_of(cfg), SHAPES_VERSION]), f"{cfg.model}.safetensors")
    if not target.is_file():
        pretrain(cfg, target, device=device)
    return target


def open_surrogate(settings: Settings, model: StagedViT) -> nn.Module | None:
    """The network on which transferred images for this model are made; None where there is none to be had.

    Warns:
        UserWarning: its weights are missing or cannot be fetched, or it is for images of another size.
    Raises:
        ValueError: the weights do not fit.
    """
    name, weights = settings.surrogate, settings.surrogate_weights
    if not name or name == model.name or (name == SURROGATE_CNN) != (settings.data.kind == "shapes"):
        return None  # images made on the model itself would not be transferred, nor those of the CNN be photographs
    try:
        if name != SURROGATE_CNN:
            if weights == "pretrained" and _classes_of(name) != model.num_classes:
                return None  # before anything is fetched
            surrogate = load_model(name, weights, device=model.device)
            if surrogate.image_shape != model.image_shape:
                raise FileNotFoundError(f"surrogate {name} takes images {surrogate.image_shape}, {model.name} "
                                        f"{model.image_shape}: set surrogate to one of that size")  # fmt: skip
            return surrogate if surrogate.num_classes == model.num_classes else None  # of other classes
        size = model.image_shape[1]
        if weights == "shipped" and size != SurrogateConfig().size:
            raise FileNotFoundError(
                f"the shipped {name} is for {SurrogateConfig().size} px, {model.name} takes {size}: "
                "set surrogate_weights to train"
            )
        if weights == "train":
            return _from_scratch(replace(settings.surrogate_pretrain, size=size), model.device)
        return load_surrogate(weights, num_classes=len(CLASSES), size=size, device=model.device)
    except (FileNotFoundError, ConnectionError) as error:
        warnings.warn(f"no transferred images: {error}", stacklevel=2)
        return None


def _classes_of(name: str) -> int:
    with torch.device("meta"):
        return build_model(name).num_classes


def open_experiment(settings: Settings, name: str | None = None) -> Experiment:
    """Model, data, pool and reported images. Pool and held-out part are disjoint pieces of train, the rest is val."""
    model = open_model(settings, name)
    source = open_source(settings.data, model)
    pool = open_pool(settings, model, source)  # first: its images are not kept
    reported, _ = source.take("val", settings.images)
    return Experiment(model, source, pool, clean_pass(model, reported))


def open_pool(settings: Settings, model: StagedViT, source: Source) -> Pool:
    """The first images of split train passed through a model, to learn noise from, and the held-out ones after them."""
    images, _ = source.take("train", settings.pool + settings.heldout)
    return make_pool(model, images, heldout=settings.heldout)


def open_bench(settings: Settings, name: str | None = None) -> Bench:
    """A model of the settings, by default the first, with its data set and the surrogate that goes with it."""
    model = open_model(settings, name)
    return Bench(model, open_source(settings.data, model), settings.suite, open_surrogate(settings, model))
