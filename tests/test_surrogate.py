"""The shipped CNN of transferred attacks: small, as good as its record says, and its attacks reach the ViT."""

import json

import pytest
import torch

from nslib.analysis.attack_curves import random_signs
from nslib.attacks.surrogate import SURROGATE_CNN, SurrogateCNN, load_surrogate
from nslib.attacks.transfer import transfer_set
from nslib.config import SuiteConfig, SurrogateConfig
from nslib.data.shapes import VERSION, render
from nslib.models import load_model, weights_path
from nslib.pretrain import accuracy, pretrain
from nslib.runtime import generator

TINY = SurrogateConfig(size=32, steps=6, batch=8, fgsm_steps=3, checkpoint_every=2, report_images=20)


def test_shipped_file_and_record():
    path = weights_path(SURROGATE_CNN, "shipped")
    record = json.loads(path.with_suffix(".json").read_text())
    assert path.stat().st_size < 1_000_000
    assert record["shapes_version"] == VERSION
    images, labels = render("val", range(50_000, 50_800))
    measured = accuracy(load_surrogate(), images, labels)
    assert measured == pytest.approx(record["top1"]["val"], abs=0.03)
    assert measured > 0.9


def test_its_attacks_reach_the_vit():
    """Far below what random signs of the same size leave, on images that neither network saw."""
    suite = SuiteConfig()
    model = load_model()
    images, labels = render("val", range(60_000, 60_128))
    attacked = transfer_set(
        load_surrogate(), images, labels, eps=suite.transfer_eps, smoothing=suite.transfer_smoothing
    )
    random = accuracy(model, random_signs(images, suite.transfer_eps, generator(0)), labels)
    assert accuracy(model, attacked, labels) < random - 0.25


def test_training_sees_fgsm_images_at_the_end_only(tmp_path, monkeypatch):
    from nslib import pretrain as module

    steps = []
    fgsm_images = module._fgsm_images

    def noted(model, images, labels, cfg, step):
        found = fgsm_images(model, images, labels, cfg, step)
        assert (found - images).abs().max() <= cfg.fgsm_eps + 1e-6
        assert not torch.equal(found, images)
        assert model.training
        steps.append(step)
        return found

    monkeypatch.setattr(module, "_fgsm_images", noted)
    record = pretrain(TINY, tmp_path / "surrogate.safetensors", progress=False)
    assert steps == [3, 4, 5]
    assert record["config"]["fgsm_steps"] == 3
    model = load_surrogate(str(tmp_path / "surrogate.safetensors"), size=32)
    images, labels = render("val", range(20), size=32)
    assert accuracy(model, images, labels) == record["top1"]["val"]


def test_a_killed_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    from nslib import pretrain as module

    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    pretrain(TINY, whole, progress=False)
    fgsm_images = module._fgsm_images

    def killed(model, images, labels, cfg, step):
        if step == 4:
            raise KeyboardInterrupt
        return fgsm_images(model, images, labels, cfg, step)

    monkeypatch.setattr(module, "_fgsm_images", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain(TINY, broken, progress=False)
    monkeypatch.setattr(module, "_fgsm_images", fgsm_images)
    pretrain(TINY, broken, progress=False)
    assert whole.read_bytes() == broken.read_bytes()


def test_weights_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="does not fit surrogate_cnn of 7 classes"):
        load_surrogate(num_classes=7)
    (tmp_path / "torn.safetensors").write_bytes(weights_path(SURROGATE_CNN, "shipped").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"torn\.safetensors .* is truncated or no safetensors file"):
        load_surrogate(str(tmp_path / "torn.safetensors"))
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load_surrogate(str(tmp_path / "none.safetensors"))


@pytest.mark.parametrize(("setting", "value"), [("fgsm_steps", -1), ("fgsm_steps", 1701), ("fgsm_eps", 8.0)])
def test_wrong_settings(setting, value):
    with pytest.raises(ValueError, match=setting):
        SurrogateConfig(**{setting: value})


def test_architecture_is_for_square_images():
    assert SurrogateCNN(10, 48)(torch.rand(2, 3, 48, 48)).shape == (2, 10)
