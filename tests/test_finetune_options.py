"""Noise in a deeper block, and one noise for each group of classes."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from conftest import FewImages, make_vit, random_images, tiny_vit
from torch.nn import functional as F

from nslib.config import FinetuneConfig, NoiseConfig
from nslib.finetune import noises
from nslib.finetune.cut import cut_at
from nslib.finetune.noises import Search, find_noises, pool_of
from nslib.finetune.objectives import OBJECTIVES, View
from nslib.finetune.rounds import finetune_model
from nslib.finetune.stream import Stream
from nslib.finetune.updates import Trainer
from nslib.machine.processes import ALONE
from nslib.models import load_model
from nslib.nullspace.encoder import learn_noise
from nslib.nullspace.membership import noise_gap
from nslib.runtime import generator
from nslib.vit.staged import StagedViT

NOISE = NoiseConfig(limit=1.0, lr=0.05, steps=100, batch=16, eps=0.2)
CFG = FinetuneConfig(
    precision="float32", rounds=2, steps=3, batch=8, lr=1e-3, lr_min=1e-5, pool=32, heldout=16, noise=NOISE
)
TINY = dict(img_size=24, embed_dim=24, depth=3, num_heads=2)
FAMILIES = {
    "vit_tiny_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "vit_base_patch16_clip_224": {},  # a norm before the blocks
    "vit_wee_patch16_reg1_gap_256": dict(img_size=32),  # pooled, a register token and no class token
    "deit3_small_patch16_224": {},  # the class token has no position
}


@pytest.fixture
def model():
    """Four tokens of width 24 and a class token; confident enough that noise changes its mind."""
    tiny = tiny_vit(depth=3)
    with torch.no_grad():
        tiny.vit.head.weight *= 20
    return tiny


# A deeper block


@pytest.mark.parametrize("name", FAMILIES)
def test_cut_model_is_the_model(name):
    model = make_vit(name, spread=0.02, **FAMILIES[name])
    images = random_images(model, 3)
    for block in range(2):
        cut = cut_at(model, block)
        tokens = cut.embed(images)
        assert tokens.shape == (3, *cut.token_shape)
        assert torch.allclose(cut.logits_from_tokens(tokens), model(images), atol=1e-5)
        assert torch.allclose(cut(images), model(images), atol=1e-5)
    assert cut_at(model, 0) is model
    assert cut.token_shape[0] == model.token_shape[0] + model.vit.num_prefix_tokens


def test_cut_shares_weights_type_and_mode(model):
    cut = cut_at(model.double(), 1)
    assert cut.vit is model.vit
    assert cut.mean.dtype == torch.float64
    assert not cut.training
    assert cut_at(model.train(), 1).training


def test_noise_in_a_block_by_hand(model, source):
    images, labels = source.take("train", 6)
    noise = torch.randn(1, 5, 24, generator=generator(5))
    vit = model.vit
    tokens = vit.blocks[1](vit.blocks[0](vit._pos_embed(model.embed(images))))
    clean, noisy = (vit.forward_head(vit.norm(vit.blocks[2](u))) for u in (tokens, tokens + noise))
    by_hand = F.cross_entropy(clean, labels) + F.cross_entropy(noisy, labels)
    loss = OBJECTIVES["nullspace"].loss(cut_at(model, 2), View(images, labels, noise), CFG)
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    weights = list(model.parameters())
    for found, expected in zip(*(torch.autograd.grad(x, weights) for x in (loss, by_hand)), strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert found.abs().sum() > 0  # also before the cut


@pytest.mark.parametrize("block", [3, 7])
def test_block_that_is_not_there(model, source, block):
    with pytest.raises(ValueError, match=rf"block must be in 0\.\.2, the blocks of shapes_vit, got {block}"):
        finetune_model(model, source, replace(CFG, block=block))


def test_model_that_drops_patches():
    dropping = make_vit(patch_drop_rate=0.5)
    assert cut_at(dropping, 0) is dropping
    with pytest.raises(ValueError, match=r"block must be 0 for vit_tiny_patch16_224, which drops patches .*, got 1"):
        cut_at(dropping, 1)


@pytest.mark.parametrize("objective", ["nullspace", "permuted", "random", "random_boundary"])
def test_noise_of_a_block_reaches_all_tokens_and_is_inside(model, source, objective):
    cfg, cut = replace(CFG, block=1), cut_at(model, 1)
    pool = pool_of(cut, source.take("train", 48).images, cfg)
    kind = OBJECTIVES[objective].noise
    noise, (facts,) = find_noises(
        kind, cut, pool, cfg, round_=0, last=None, share=ALONE, search=Search(), on_step=None
    )  # fmt: skip
    assert noise.shape == (1, 5, 24)
    assert noise[0].norm(dim=1).min() > 0
    assert facts.gap_heldout == pytest.approx(noise_gap(cut, pool.heldout, noise), abs=1e-6)
    assert kind == "permuted" or 1e-4 < facts.gap_heldout < NOISE.eps


def test_what_is_trained_in_a_block_is_a_plain_model(model, source, tmp_path):
    before, target = deepcopy(model.vit.state_dict()), tmp_path / "w.safetensors"
    deeper, paper = (
        finetune_model(model, source, replace(CFG, block=b), target=t) for b, t in ((2, target), (0, None))
    )
    assert type(deeper.model) is StagedViT
    assert all(torch.equal(w, before[n]) for n, w in model.vit.state_dict().items())
    again = load_model("shapes_vit", target, **TINY)
    images = source.take("val", 4).images
    assert torch.equal(again(images), deeper.model(images))
    assert not torch.equal(deeper.model(images), paper.model(images))
    assert not torch.equal(deeper.model.vit.patch_embed.proj.weight, model.vit.patch_embed.proj.weight)


def test_blocks_before_the_cut_are_counted_once(model, source):
    """Of three blocks one lies behind the cut: 4 passes of an update for 6, and a third of each pass of a noise."""
    made = finetune_model(model, source, replace(CFG, block=2, rounds=1, noise=replace(NOISE, eps=None, steps=7)))
    (only,) = made.history
    assert only.noise_units == pytest.approx(48 + (7 * 2 * 16 + 16 + 16) / 3)
    assert only.update_units == 3 * 8 * 4


# Groups of classes


def found_by_group(model, source, objective="nullspace", groups=3):
    cfg = replace(CFG, groups=groups)
    images, labels = source.take("train", 48)
    pool = pool_of(model, images, cfg)
    kind = OBJECTIVES[objective].noise
    noise, facts = find_noises(kind, model, pool, cfg, round_=0, last=None, share=ALONE, search=Search(),
                               on_step=None, labels=labels)  # fmt: skip
    return pool, labels, noise, facts


@pytest.mark.parametrize("objective", ["nullspace", "permuted", "random", "random_boundary"])
def test_each_group_has_a_noise_tested_on_its_own_images(model, source, objective):
    pool, labels, noise, facts = found_by_group(model, source, objective)
    assert noise.shape == (3, 4, 24)
    assert len(facts) == 3
    for j in range(3):
        held = pool.heldout[labels[32:] % 3 == j]
        assert facts[j].norm == pytest.approx(noise[j].norm().item(), rel=1e-5)
        assert facts[j].gap_heldout == pytest.approx(noise_gap(model, held, noise[j : j + 1]), abs=1e-6)
        assert objective == "permuted" or facts[j].gap_heldout < NOISE.eps


def test_each_group_learns_from_its_own_images(model, source, monkeypatch):
    asked = []

    def watched(model, pool, cfg, **kwargs):
        asked.append(pool)
        return learn_noise(model, pool, cfg, **kwargs)

    monkeypatch.setattr(noises, "learn_noise", watched)
    pool, labels, noise, _ = found_by_group(model, source)
    assert sum(len(part) for p in asked for part in p) == 48
    for j, own in enumerate(asked):
        assert torch.equal(own.train.tokens, pool.train.tokens[labels[:32] % 3 == j])
        assert torch.equal(own.heldout.logits, pool.heldout.logits[labels[32:] % 3 == j])
    assert not torch.equal(noise[0], noise[1])


@pytest.mark.parametrize("change", [{}, dict(mixup=0.8), dict(block=1)])
def test_each_image_takes_the_noise_of_its_group(model, source, monkeypatch, change):
    used, update, found = [], Trainer.update, []

    def watched(self, images, targets, noise, generator):
        used.append(noise)
        return update(self, images, targets, noise, generator)

    def kept(*args, **kwargs):
        found.append(find_noises(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(Trainer, "update", watched)
    monkeypatch.setattr("nslib.finetune.rounds.find_noises", kept)
    cfg = replace(CFG, groups=2, rounds=1, **change)
    finetune_model(model, source, cfg)
    noise, _ = found[0]
    groups = [batch.labels % 2 for batch in Stream(source, model, cfg, ALONE).batches(0, 3)]
    assert set(torch.cat(groups).tolist()) == {0, 1}
    for group, given in zip(groups, used, strict=True):
        assert torch.equal(given, noise[group])  # (8, N, D)


def test_rounds_warm_start_each_group_at_its_own_noise(model, source):
    cfg = replace(CFG, groups=2, warm_start=1.5)
    starts = []
    made = finetune_model(model, source, cfg, on_step=lambda m: starts.append(m) if m.step == 0 else None)
    second = [m.values["norm"] for m in starts if m.round == 1]
    assert len(second) == 2
    for start, fact in zip(second, made.history[0].noises, strict=True):
        assert start > fact.norm
    assert second[0] != pytest.approx(second[1], rel=1e-4)


@pytest.mark.parametrize(
    ("first", "told"),
    [
        (90, r"group 1 of 2, labels 1, 3, \.\.\., has no image in the train part of the pool: raise pool or lower"),
        (40, r"group 1 of 2, labels 1, 3, \.\.\., has no image in the train part of the pool: raise pool or lower"),
        (4, r"group 0 of 2, labels 0, 2, \.\.\., has no image in the heldout part of the pool: raise heldout or lower"),
    ],
)
def test_group_without_images(model, first, told):
    with pytest.raises(ValueError, match=told):
        finetune_model(model, FewImages(90, second=first), replace(CFG, groups=2))


def test_more_groups_than_classes(model, source):
    with pytest.raises(ValueError, match="groups must be at most 10, the classes of the model, got 11"):
        finetune_model(model, source, replace(CFG, groups=11))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dict(block=-1), "block must be >= 0, got -1"),
        (dict(groups=0), "groups must be >= 1, got 0"),
        (dict(groups=2, noises=3), "groups must be 1 with noises = 3, got 2"),
    ],
)
def test_settings_out_of_range(change, told):
    with pytest.raises(ValueError, match=told):
        replace(CFG, **change)
