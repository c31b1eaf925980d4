"""From settings to objects: the path that the gpu profile takes, with a handful of steps on a CPU."""

import pytest
import torch
from conftest import make_vit

from nslib.config import DataConfig
from nslib.data.source import open_source
from nslib.experiment import open_experiment, open_model
from nslib.profiles import resolve

TINY = {
    "device": "cpu",
    "models": ("vit_tiny_patch16_224",),
    "pretrain.size": 32,
    "pretrain.steps": 3,
    "pretrain.batch": 4,
    "pretrain.report_images": 4,
    "pool": 6,
    "heldout": 2,
    "images": 4,
}


def test_gpu_profile_trains_once_and_opens():
    settings = resolve("gpu", overrides=TINY)
    lab = open_experiment(settings)
    assert lab.model.image_shape == (3, 32, 32)
    assert lab.model.num_classes == 10
    assert len(lab.pool.train) == 6
    assert len(lab.pool.heldout) == 2
    assert len(lab.clean) == 4
    again = open_model(settings)
    assert torch.equal(lab.model.vit.head.weight, again.vit.head.weight)


def test_pool_heldout_and_reported_images_are_disjoint():
    lab = open_experiment(resolve("smoke", overrides={"device": "cpu", "pool": 40, "heldout": 20, "images": 60}))
    parts = (lab.pool.train, lab.pool.heldout, lab.clean)
    tokens = torch.cat([part.tokens.flatten(1) for part in parts])
    assert len(tokens.unique(dim=0)) == len(tokens) == 120


def test_folder_without_root_names_the_option(monkeypatch):
    monkeypatch.delenv("NSLIB_IMAGENET", raising=False)
    settings = resolve(
        "imagenet", overrides={"weights": "random", "models": ("vit_tiny_patch16_224",), "device": "cpu"}
    )
    with pytest.raises(ValueError, match="--imagenet FOLDER or set NSLIB_IMAGENET"):
        open_experiment(settings)


def test_folder_with_too_few_images_says_how_many(image_tree):
    source = open_source(DataConfig(kind="folder", root=str(image_tree)), make_vit(num_classes=1000))
    with pytest.raises(ValueError, match="holds 12 images, asked for 8 to 108: ask for fewer"):
        source.take("val", 100, start=8)
