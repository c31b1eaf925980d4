"""What a finetuning will need, told before it starts, against what it then needs."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import FewImages, tiny_vit
from timm.layers import DropPath
from torch import Tensor

from nslib.config import FinetuneConfig, NoiseConfig
from nslib.finetune import estimate as module
from nslib.finetune.cost import cost_told
from nslib.finetune.estimate import estimate, kept_bytes
from nslib.finetune.rounds import finetune_model
from nslib.finetune.updates import Trainer
from nslib.machine.processes import Share
from nslib.runtime import generator

NOISE = NoiseConfig(limit=1.0, lr=0.05, steps=7, batch=16, eps=None)
CFG = FinetuneConfig(
    precision="float32", rounds=2, steps=3, batch=8, lr=1e-3, lr_min=1e-5, pool=32, heldout=16, noise=NOISE
)


def test_an_update_is_timed_without_the_check_at_the_end_of_a_round(model, source, monkeypatch):
    monkeypatch.setattr(Trainer, "check", lambda self, images: time.sleep(1))
    assert estimate(model, source, CFG).update_seconds < 0.5


# Bytes


def test_kept_bytes_by_hand():
    x = torch.rand(1000, generator=generator(0), requires_grad=True)

    def chain():
        y = x.exp()  # keeps y
        (y * y).sum().backward()  # keeps y twice, the same memory

    def twice():
        chain()
        chain()  # the first graph is gone

    def both():
        first, second = x.exp(), x.exp()
        (first.sum() + second.sum()).backward()

    assert kept_bytes(chain) == 4000
    assert kept_bytes(twice) == 4000
    assert kept_bytes(both) == 8000
    assert kept_bytes(torch.no_grad()(lambda: x.exp())) == 0


def test_gradient_checkpointing_keeps_less_and_changes_no_gradient():
    """Of the dropped blocks that are computed again on the way back, too."""
    model = tiny_vit(depth=5).double().train()
    model.vit.blocks[1].drop_path1 = DropPath(0.5)
    images = torch.rand(8, *model.image_shape, generator=generator(0), dtype=torch.float64)
    kept, found = [], []
    for _ in range(2):
        for forward in (model, lambda x: model.classify(model.encode(model.embed(x)))):
            made: list[Tensor] = []
            torch.manual_seed(0)
            kept.append(kept_bytes(lambda f=forward, m=made: m.append(f(images)), weights=model.parameters()))
            found.append([made[0], *torch.autograd.grad(made[0].square().sum(), model.vit.blocks.parameters())])
        model.vit.set_grad_checkpointing()
    for plain, again in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(plain, again, rtol=0, atol=0)
    assert max(kept[2:]) < 0.5 * min(kept[:2])


def test_weights_are_not_counted():
    w = torch.ones(1000, requires_grad=True)
    x = torch.ones(1000, requires_grad=True)
    assert kept_bytes(lambda: (w * x).sum().backward()) == 8000
    assert kept_bytes(lambda: (w * x).sum().backward(), weights=[w]) == 4000


def test_memory_by_hand(model, source):
    weights = sum(p.numel() for p in model.parameters())
    memory = estimate(model, source, CFG).memory
    assert memory["weights"] == 3 * 4 * weights
    assert (memory["gradients"], memory["moments"]) == (4 * weights, 8 * weights)
    assert memory["pool"] == 48 * 4 * (3 * 24 * 24 + 4 * 24)
    head = estimate(model, source, replace(CFG, objective="plain", trainable="head", ema=0.9)).memory
    assert head["weights"] == 4 * 4 * weights
    assert head["gradients"] == 4 * sum(p.numel() for p in model.vit.head.parameters())
    assert head["activations"] < 0.5 * memory["activations"]
    assert estimate(model, source, replace(CFG, objective="plain")).memory["pool"] == 0


def test_a_large_search_needs_more_than_a_small_update(model, source):
    small, large = (
        estimate(model, source, replace(CFG, batch=2, pool=40, noise=replace(CFG.noise, batch=b))).memory["activations"]
        for b in (2, 40)
    )
    assert large > 4 * small
    grouped = replace(CFG, batch=2, pool=40, noise=replace(CFG.noise, batch=40), groups=2)
    assert estimate(model, source, grouped).memory["activations"] < 0.6 * large  # each searches on its half


def test_activations_grow_with_the_batch(model, source):
    small, large = (estimate(model, source, replace(CFG, batch=b)).memory["activations"] for b in (8, 16))
    assert large == pytest.approx(2 * small, rel=0.05)
    plain = estimate(model, source, replace(CFG, objective="plain")).memory["activations"]
    assert 1.6 * plain < small < 2 * plain  # two branches, one patch embedding


def test_a_search_that_is_not_made_is_not_shared(model, source):
    """Two processes cannot share steps of 15 images, which `plain` does not take."""
    odd = replace(CFG, noise=replace(NOISE, batch=15))
    assert estimate(model, source, replace(odd, objective="plain"), share=Share(count=2)).noise_units == 0
    with pytest.raises(ValueError, match="a batch of 15 images cannot be shared equally by 2"):
        estimate(model, source, odd, share=Share(count=2))


def test_peak_is_the_sum_on_a_cpu(model, source):
    planned = estimate(model, source, CFG)
    assert planned.peak == sum(planned.memory.values())


# Counts


@pytest.mark.parametrize(
    "change",
    [{}, dict(objective="permuted"), dict(noises=2), dict(block=1), dict(objective="plain"), dict(objective="madry"),
     dict(noise=replace(NOISE, steps=1)), dict(noise=replace(NOISE, batch=64)), dict(mixup=0.8)],
    ids=lambda change: str(sorted(change)),
)  # fmt: skip
def test_estimate_is_what_is_then_needed(model, source, change):
    """Without early stop every noise step is made."""
    cfg = replace(CFG, **change)
    planned, made = estimate(model, source, cfg), finetune_model(model, source, cfg)
    assert planned.images == made.record["images"] == 48
    assert planned.noise_units == pytest.approx(made.record["units"]["noise"])
    assert planned.update_units == pytest.approx(made.record["units"]["updates"])
    searched = [n.steps for r in made.history for n in r.noises]
    assert planned.noise_steps == sum(searched)


def test_early_stop_costs_at_most_as_much(model, source):
    cfg = replace(CFG, noise=replace(NOISE, steps=60, eps=0.3))
    planned, made = estimate(model, source, cfg), finetune_model(model, source, cfg)
    assert planned.noise_steps == 120
    assert 48 * 2 < made.record["units"]["noise"] < planned.noise_units


@pytest.mark.parametrize("change", [dict(objective="random"), dict(warm_start=1.5)])
def test_settings_that_need_an_eps(model, source, change):
    cfg = replace(CFG, noise=replace(NOISE, eps=0.1), **change)
    planned = estimate(model, source, cfg)
    assert planned.noise_steps == (0 if "objective" in change else 14)
    assert planned.noise_units > 2 * 48
    with pytest.raises(ValueError, match=r"needs the eps .*: set noise\.eps"):
        estimate(model, source, replace(CFG, **change))


def test_hours_by_a_clock_that_ticks_at_each_step(model, source, monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    planned = estimate(model, source, replace(CFG, noise=replace(NOISE, steps=3602), noises=2))
    assert (planned.noise_step_seconds, planned.update_seconds) == (1, 1)
    by_hand = 2 * (2 * 3600 + 3) / 3600  # and the round of two steps by a clock of its own
    assert by_hand < planned.hours < by_hand + 0.1


def test_nothing_is_changed_or_written(model, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {n: w.clone() for n, w in model.vit.state_dict().items()}
    estimate(model, source, CFG)
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(w, before[n]) for n, w in model.vit.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


# Words


def test_lines_tell_it_in_words(model):
    planned = estimate(model, FewImages(96), CFG)
    text = "\n".join(planned.lines())
    assert "images: 48, in 2 rounds of 3 updates of 8\n" in text
    assert "noise steps: without early stops 14\n" in text
    assert f"forward passes: without early stops {planned.noise_units:.0f} for noise, 288 for updates\n" in text
    images = (planned.noise_units + 288) / 3
    epochs = f"{images / 96:.3g} epochs over the 96 of split train (the paper: 8)"
    assert f"cost: without early stops {images:.0f} images of standard training, {epochs}\n" in text
    assert "memory of a process, GB: 0.00 beside Python and torch (weights 0.00, gradients" in text
    assert f"hours: without early stops {planned.hours:.2f}, with" in text
    assert text.endswith("s an update, as measured now in float32")
    plain = estimate(model, FewImages(96), replace(CFG, objective="plain"))
    assert "without early stops" not in "\n".join(plain.lines())


def test_cost_in_words():
    assert cost_told(3000, None) == "1,000 images of standard training"
    assert cost_told(3 * 8 * 1281167, 1281167) == (
        "10,249,336 images of standard training, 8 epochs over the 1,281,167 of split train (the paper: 8)"
    )
