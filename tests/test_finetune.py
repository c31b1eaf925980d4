"""The trainer of Algorithm 1: each loss by hand, one recipe for all objectives, rounds by their history."""

import json
import math
import random
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from conftest import TINY, FewImages, files_in, make_vit, tiny_vit
from safetensors.torch import load_file
from torch.nn import functional as F
from torchvision.transforms.functional import to_pil_image

from nslib.config import DataConfig, FinetuneConfig, NoiseConfig
from nslib.data.source import ShapesSource
from nslib.evaluate.suite import evaluate_model
from nslib.finetune import rounds
from nslib.finetune.augment import Augment, set_drop_path
from nslib.finetune.cost import metered
from nslib.finetune.draws import PURPOSES, draws, number, seeded
from nslib.finetune.noises import Search, find_noises, pool_of
from nslib.finetune.objectives import OBJECTIVES, View, against_itself, against_labels, recipe_of
from nslib.finetune.precision import computing_in, resolved
from nslib.finetune.result import history_table
from nslib.finetune.rounds import FinetuneDiverged, Moment, finetune_model
from nslib.finetune.stream import Stream
from nslib.finetune.updates import Trainer
from nslib.machine.processes import ALONE, Share
from nslib.machine.progress import _TimeLeft, finetune_bar
from nslib.models import load_model
from nslib.nullspace.membership import agreement, boundary_scale, clean_pass, noise_gap, random_noise_at
from nslib.runtime import generator

NOISE = NoiseConfig(limit=1.0, lr=0.05, steps=100, batch=16)
CFG = FinetuneConfig(
    precision="float32",
    rounds=2,
    steps=3,
    batch=8,
    lr=1e-3,
    lr_min=1e-5,
    pool=32,
    heldout=16,
    attack_steps=2,
    noise=NOISE,
)


@pytest.fixture
def model():
    """Four tokens of width 24; confident enough that noise changes its mind."""
    tiny = tiny_vit()
    with torch.no_grad():
        tiny.vit.head.weight *= 20
    return tiny


def weights(model) -> dict[str, torch.Tensor]:
    return model.vit.state_dict()


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


def view_of(model, source, n=6, **more) -> View:
    images, labels = source.take("train", n)
    return View(images, labels, **more)


def some_noise(model, scale=1.0):
    return torch.randn(1, *model.token_shape, generator=generator(5)) * scale


def gradients(model, loss):
    return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])


def close(a, b):
    return all(torch.allclose(x, y, rtol=1e-4, atol=1e-5) for x, y in zip(a, b, strict=True))


# Losses


def test_noised_loss_by_hand(model, source):
    view = view_of(model, source, noise=some_noise(model))
    tokens = model.embed(view.images)
    by_hand = F.cross_entropy(model.logits_from_tokens(tokens), view.targets)
    by_hand = by_hand + F.cross_entropy(model.logits_from_tokens(tokens + view.noise), view.targets)
    loss = OBJECTIVES["nullspace"].loss(model, view, CFG)
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert close(gradients(model, loss), gradients(model, by_hand))


def test_plain_is_the_noised_loss_without_noise(model, source):
    view = view_of(model, source, noise=torch.zeros(1, *model.token_shape))
    noised, plain = (OBJECTIVES[name].loss(model, view, CFG) for name in ("nullspace", "plain"))
    assert plain.item() == pytest.approx(noised.item(), rel=1e-5)
    assert plain.item() == pytest.approx(2 * F.cross_entropy(model(view.images), view.targets).item(), rel=1e-5)
    assert close(gradients(model, plain), gradients(model, noised))


def test_patch_embedding_is_computed_once_for_both_branches(model, source):
    calls = []
    model.vit.patch_embed.norm.register_forward_hook(lambda *_: calls.append(1))
    OBJECTIVES["nullspace"].loss(model, view_of(model, source, noise=some_noise(model)), CFG)
    assert len(calls) == 1


def test_adversarial_losses_by_hand(model, source):
    view = view_of(model, source)
    view = view._replace(adversarial=(view.images + 0.1).clamp(0, 1))
    with torch.no_grad():
        z, other = model(view.images), model(view.adversarial)
        clean, attacked = F.cross_entropy(z, view.targets).item(), F.cross_entropy(other, view.targets).item()
        p = z.softmax(1)
        divergence = (p * (p.log() - other.softmax(1).log())).sum(1).mean().item()
        losses = {name: OBJECTIVES[name].loss(model, view, replace(CFG, trades_beta=3.0)).item()
                  for name in ("madry", "madry_authors", "trades")}  # fmt: skip
    assert losses["madry"] == pytest.approx(2 * attacked, rel=1e-5)
    assert losses["madry_authors"] == pytest.approx(clean + attacked, rel=1e-5)
    assert losses["trades"] == pytest.approx(2 * clean + 6 * divergence, rel=1e-4)


@pytest.mark.parametrize("attack", [against_labels, against_itself])
def test_attacked_images_are_near_and_worse(model, source, attack):
    cfg = replace(CFG, attack_steps=5, attack_eps=0.03, attack_step=0.01)
    view = view_of(model, source, 16)
    found = attack(model, view, cfg, generator(0))
    assert 0.5 * 0.03 < (found - view.images).abs().max() <= 0.03 + 1e-6
    assert 0 <= found.min() <= found.max() <= 1
    assert not found.requires_grad
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    name = "madry" if attack is against_labels else "trades"
    start = attack(model, view, replace(cfg, attack_step=0.0), generator(0))
    losses = [OBJECTIVES[name].loss(model, view._replace(adversarial=x), cfg).item() for x in (start, found)]
    assert losses[1] > losses[0] + 0.01


def test_mixed_targets_are_attacked_at_their_largest_share(model, source):
    view = view_of(model, source)
    shares = F.one_hot(view.targets, 10).float() * 0.6 + 0.04
    found = [against_labels(model, v, CFG, generator(0)) for v in (view, view._replace(targets=shares))]
    assert torch.equal(*found)


def test_unknown_objective(model, source):
    known = r"nullspace, nullspace_by_batch, permuted, .*, sam"
    with pytest.raises(ValueError, match=rf"objective must be one of {known}, got 'nulspace'"):
        finetune_model(model, source, replace(CFG, objective="nulspace"))


@pytest.mark.parametrize("change", [dict(objective="random"), dict(objective="random_boundary"), dict(warm_start=2.0)])
def test_eps_that_is_needed(change):
    with pytest.raises(ValueError, match=r"needs the eps .*: set noise\.eps"):
        recipe_of(replace(CFG, noise=replace(NOISE, eps=None), **change))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dict(rounds=0), "rounds must be >= 1, got 0"),
        (dict(lr=0), "lr must be > 0 and finite, got 0"),
        (dict(lr_min=1.0), r"lr_min must be in \[0, lr = 0.001\], got 1.0"),
        (dict(ema=1.0), r"ema must be in \[0, 1\), got 1.0"),
        (dict(erasing=1.1), r"erasing must be in \[0, 1\], got 1.1"),
        (dict(attack_eps=8), r"attack_eps must be in \[0, 1\], got 8"),
        (dict(mixup=-1), "mixup must be >= 0 and finite, got -1"),
        (dict(cutmix=math.inf), "cutmix must be >= 0 and finite, got inf"),
        (dict(sam_rho=math.inf), "sam_rho must be > 0 and finite, got inf"),
        (dict(warm_start=0.9), "warm_start must be 0, or > 1, got 0.9"),
        (dict(precision="half"), "precision must be auto, float32 or bfloat16, got 'half'"),
        (dict(attack_precision="half"), "attack_precision must be auto, float32 or bfloat16, got 'half'"),
    ],
)
def test_settings_out_of_range(change, told):
    with pytest.raises(ValueError, match=told):
        replace(CFG, **change)


# One recipe


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_a_copy(model, source, name):
    before = deepcopy(model)
    made = finetune_model(model, source, replace(CFG, objective=name))
    assert same(model, before)
    assert all(p.requires_grad for p in model.parameters())
    assert not same(made.model, model)
    assert not made.model.training
    assert all(p.requires_grad and p.grad is None for p in made.model.parameters())
    assert [len(r.losses) for r in made.history] == [3, 3]
    assert all(math.isfinite(loss) for r in made.history for loss in r.losses)
    assert [len(r.noises) for r in made.history] == [1 if OBJECTIVES[name].noise else 0] * 2


def test_noise_stopped_by_its_batch_is_inside_eps_there_alone(model, source):
    """An objective of its own, of the weights that `noise.stop_on` gives the method."""
    ours, asked, heldout = (
        finetune_model(model, source, replace(CFG, objective=name, noise=replace(NOISE, batch=4, stop_on=stop))).history
        for name, stop in (("nullspace_by_batch", "heldout"), ("nullspace", "batch"), ("nullspace", "heldout"))
    )
    assert [r.losses for r in ours] == [r.losses for r in asked] != [r.losses for r in heldout]
    found = [noise for r in ours for noise in r.noises]
    assert all(noise.converged and noise.gap_batch < NOISE.eps for noise in found)
    assert any(noise.gap_heldout >= NOISE.eps for noise in found)
    assert ours[0].noises[0].steps < heldout[0].noises[0].steps


def test_every_objective_sees_the_same_images(model, source, monkeypatch):
    take, seen = ShapesSource.take, {}

    def watched(self, split, n, *, start=0):
        if n == CFG.batch:
            seen[name].append((split, start))
        return take(self, split, n, start=start)

    monkeypatch.setattr(ShapesSource, "take", watched)
    for name in OBJECTIVES:
        seen[name] = []
        finetune_model(model, source, replace(CFG, objective=name))
    assert list(seen.values()) == [[("train", 48 + 8 * s) for s in range(6)]] * len(OBJECTIVES)  # 48 = pool + heldout


def test_seed_decides_the_weights(model, source):
    first, again, other = (finetune_model(model, source, replace(CFG, seed=s)).model for s in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


def test_training_learns(model):
    """Sixteen images, again and again, are soon known by heart."""
    cfg = replace(CFG, objective="plain", rounds=1, steps=60, batch=16, lr=3e-3)
    (made,) = finetune_model(model, FewImages(64), cfg).history
    assert sum(made.losses[-5:]) < 0.7 * sum(made.losses[:5])


def test_learning_rate_falls_along_a_cosine(model, source):
    rates = []
    cfg = replace(CFG, objective="plain", lr=1e-3, lr_min=1e-4)
    finetune_model(model, source, cfg, on_step=lambda moment: rates.append(moment.values["lr"]))
    assert rates == pytest.approx([1e-4 + 9e-4 * (1 + math.cos(math.pi * s / 6)) / 2 for s in range(1, 7)])


def trainer_of(model, **change) -> Trainer:
    objective, cfg = recipe_of(replace(CFG, **change))
    return Trainer(deepcopy(model), objective, resolved(cfg, model.device), ALONE)


def test_gradients_are_clipped(model, source):
    view = view_of(model, source)
    trainer = trainer_of(model, objective="plain", clip=0.01)
    trainer.update(view.images, view.targets, None, generator(0))
    assert torch.cat([p.grad.flatten() for p in trainer.parameters]).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_averaged_weights_by_hand(model, source):
    view = view_of(model, source)
    trainer = trainer_of(model, objective="plain", ema=0.75)
    average = model.vit.head.weight.detach().clone()
    for _ in range(3):
        trainer.update(view.images, view.targets, None, generator(0))
        average = 0.75 * average + 0.25 * trainer.model.vit.head.weight.detach()
    assert torch.allclose(trainer.result().vit.head.weight, average, atol=1e-6)
    assert not torch.allclose(trainer.model.vit.head.weight, average, atol=1e-6)


def test_only_what_is_asked_for_is_trained(model, source):
    made = finetune_model(model, source, replace(CFG, trainable="pos_embed")).model
    changed = {n for n, w in weights(made).items() if not torch.equal(w, weights(model)[n])}
    assert changed == {"pos_embed"}
    with pytest.raises(
        ValueError, match=r"trainable must be part of a parameter's name, such as .*pos_embed.*, got 'x'"
    ):
        finetune_model(model, source, replace(CFG, trainable="x"))


def test_weight_decay_spares_vectors_and_position(model):
    trainer = trainer_of(model)
    name = {id(p): n for n, p in trainer.model.vit.named_parameters()}
    groups = {g["weight_decay"]: {name[id(p)] for p in g["params"]} for g in trainer.optimizer.param_groups}
    assert groups.keys() == {0.0, CFG.weight_decay}
    assert groups[0.0] >= {"cls_token", "pos_embed", "head.bias", "norm.weight"}
    assert groups[CFG.weight_decay] >= {"head.weight", "patch_embed.proj.weight"}
    assert groups[0.0] | groups[CFG.weight_decay] == set(name.values())


def test_sharpness_is_felt_in_bfloat16(model, source):
    """The second gradient is that of the moved weights, not of casts of the first ones."""
    view = view_of(model, source)
    trainer = trainer_of(model, objective="sam", sam_rho=0.5, clip=1e9)
    above = trainer_of(model, objective="plain").model
    with computing_in("bfloat16", torch.device("cpu")):
        trainer._gradient(view)
        trainer._climb()
        trainer._gradient(view)
    above.vit.load_state_dict(trainer.model.vit.state_dict())
    with computing_in("bfloat16", torch.device("cpu")):
        expected = gradients(above, OBJECTIVES["sam"].loss(above, view, CFG))
    assert close([p.grad for p in trainer.parameters], expected)


def test_sharpness_takes_the_gradient_uphill(model, source):
    view = view_of(model, source)
    trainer = trainer_of(model, objective="sam", sam_rho=0.1, clip=1e9)
    gradient = gradients(model, OBJECTIVES["sam"].loss(model, view, CFG))
    length = torch.cat([g.flatten() for g in gradient]).norm()
    above = deepcopy(model)
    with torch.no_grad():
        for p, g in zip(above.parameters(), gradient, strict=True):
            p.add_(g * 0.1 / length)
    expected = gradients(above, OBJECTIVES["sam"].loss(above, view, CFG))
    before = [p.detach().clone() for p in trainer.parameters]
    trainer.update(view.images, view.targets, None, generator(0))
    assert close([p.grad for p in trainer.parameters], expected)
    assert not close(gradient, expected)
    largest = max((p - b).abs().max().item() for p, b in zip(trainer.parameters, before, strict=True))
    assert largest <= 1e-3 * 1.1  # one AdamW step from where the weights were, not from uphill


def test_precision_follows_the_device(monkeypatch):
    cfg, (cpu, cuda, mps) = replace(CFG, precision="auto"), map(torch.device, ("cpu", "cuda", "mps"))

    def found(cfg, device=cpu, **share):
        made = resolved(cfg, device, **share)
        return made.precision, made.attack_precision

    assert found(cfg, cuda) == ("bfloat16", "bfloat16")
    assert found(cfg, mps) == ("float32", "float32")
    for able, expected in (
        ({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16"),
        ({"avx512_bf16": False, "avx512_f": True}, "float32"), ({}, "float32"),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able, raising=False)
        assert found(cfg) == (expected, expected)
        assert found(CFG) == ("float32", "float32")
        assert found(replace(CFG, attack_precision="bfloat16")) == ("float32", "bfloat16")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    unlike = Share(rank=0, count=2, gather=lambda own: [*own, False])  # the other process's CPU does not gain
    assert found(cfg, share=unlike) == ("float32", "float32")
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # a torch that cannot tell
    assert found(cfg) == ("float32", "float32")
    with pytest.raises(ValueError, match="precision must be float32 or bfloat16, got 'auto': take that of `resolved`"):
        computing_in("auto", cpu).__enter__()


def test_record_tells_the_precision(model, source, tmp_path):
    """Also where the device chose it."""
    for asked in ("auto", "bfloat16", "float32"):
        cfg = replace(CFG, objective="madry", precision=asked, rounds=1, steps=1)
        record = finetune_model(model, source, cfg, target=tmp_path / f"{asked}.safetensors").record
        used = resolved(cfg, model.device).precision
        assert record["precision"] == record["attack_precision"] == used
        assert record["config"]["finetune"]["precision"] == asked


@pytest.mark.parametrize("outer", ["float32", "bfloat16"])
def test_products_and_attention_are_in_that_precision(model, source, outer):
    images, seen = view_of(model, source).images, {}
    hook = model.vit.blocks[0].attn.register_forward_hook(lambda *call: seen.update(attended=call[2].dtype))
    with hook, torch.enable_grad(), computing_in(outer, images.device):
        logits = model(images)
        assert torch.backends.cuda.flash_sdp_enabled() == (outer == "float32")  # the switch is that of CPUs too
        for inner in ("bfloat16", "float32"):
            with computing_in(inner, images.device):
                model(images)
            assert seen["attended"] == getattr(torch, inner)
        model(images)
        assert seen["attended"] == getattr(torch, outer)  # as before
    assert logits.dtype == torch.float32  # of which losses are made
    assert torch.backends.cuda.flash_sdp_enabled()


def test_an_attack_has_a_precision_of_its_own(model, source):
    """It moves what the model is trained on by less than a step of the attack, and nothing where there is no attack."""
    view, cfg = view_of(model, source), replace(CFG, attack_precision="bfloat16")
    attacked = [finetune_model(model, source, replace(c, objective="madry")) for c in (CFG, cfg)]
    first = [made.history[0].losses[0] for made in attacked]
    assert first[0] != first[1]
    assert first[0] == pytest.approx(first[1], rel=0.02)
    assert {w.dtype for w in weights(attacked[1].model).values()} == {torch.float32}
    exact = against_labels(model, view, CFG, generator(0))
    with computing_in("bfloat16", view.images.device):
        quick = against_labels(model, view, CFG, generator(0))
    assert quick.dtype == torch.float32
    assert (quick == exact).float().mean() > 0.95
    assert (quick - view.images).abs().max() <= CFG.attack_eps + 1e-6
    assert same(finetune_model(model, source, CFG).model, finetune_model(model, source, cfg).model)


@pytest.mark.parametrize("name", ["nullspace", "random", "madry"])
def test_bfloat16_trains_float32_weights(model, source, name):
    made = finetune_model(model, source, replace(CFG, objective=name, precision="bfloat16", rounds=1))
    assert {w.dtype for w in weights(made.model).values()} == {torch.float32}
    full = finetune_model(model, source, replace(CFG, objective=name, rounds=1))
    assert made.history[0].losses[0] == pytest.approx(full.history[0].losses[0], rel=0.05)
    assert not same(made.model, full.model)


# Noise


def noises(model, source, kind, cfg=CFG, round_=0, last=None, share=ALONE):
    pool = pool_of(model, source.take("train", 48).images, cfg)
    return pool, *find_noises(
        kind, model, pool, cfg, round_=round_, last=last, share=share, search=Search(), on_step=None
    )


@pytest.mark.parametrize("kind", ["learned", "authors", "boundary"])
def test_noise_is_inside_on_heldout_images(model, source, kind):
    pool, noise, (facts,) = noises(model, source, kind)
    assert noise.shape == (1, *model.token_shape)
    assert facts.norm == pytest.approx(noise.norm().item(), rel=1e-5)
    assert facts.gap_heldout == pytest.approx(noise_gap(model, pool.heldout, noise), abs=1e-6)
    assert 0.001 < facts.gap_heldout < NOISE.eps
    assert facts.converged
    assert (facts.steps > 0) == (kind == "learned") == (facts.gap_batch is not None)


def test_random_noise_is_that_of_all_processes(model, source):
    """Each scales it by tests of its own, which devices may round differently."""
    both = Share(rank=0, count=2, mean=lambda mine: mine / 2)  # as if the other's were zero
    alone = noises(model, source, "boundary")[1]
    assert torch.equal(noises(model, source, "boundary", share=both)[1], alone / 2)


def test_permuted_noise_is_the_learned_one_in_another_order(model, source):
    pool, learned, (facts,) = noises(model, source, "learned")
    _, permuted, (control,) = noises(model, source, "permuted")
    assert torch.equal(permuted.flatten().sort().values, learned.flatten().sort().values)
    assert not torch.equal(permuted, learned)
    assert (control.norm, control.steps) == (facts.norm, facts.steps)
    assert control.gap_heldout == pytest.approx(noise_gap(model, pool.heldout, permuted), abs=1e-6)
    assert control.gap_heldout > 1.2 * facts.gap_heldout


def test_rounds_draw_different_noises(model, source):
    found = [noises(model, source, "learned", round_=r)[1] for r in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_each_round_asks_the_model_as_it_is_now(model, source, monkeypatch):
    asked = []

    def watched(kind, model, pool, cfg, **kwargs):
        with torch.no_grad():
            asked.append((model(source.take("train", 48).images), torch.cat([pool.train.logits, pool.heldout.logits])))
        return find_noises(kind, model, pool, cfg, **kwargs)

    monkeypatch.setattr(rounds, "find_noises", watched)
    finetune_model(model, source, CFG)
    assert all(torch.allclose(*pair, atol=1e-4) for pair in asked)
    assert not torch.allclose(asked[0][0], asked[1][0], atol=1e-2)


def test_several_noises_take_turns(model, source, monkeypatch):
    used, update = [], Trainer.update

    def watched(self, images, targets, noise, generator):
        used.append(tuple(noise.flatten().tolist()))
        return update(self, images, targets, noise, generator)

    monkeypatch.setattr(Trainer, "update", watched)
    made = finetune_model(model, source, replace(CFG, rounds=1, steps=12, noises=2))
    assert len(made.history[0].noises) == 2
    assert sorted(used.count(v) for v in set(used)) != [12]
    assert len(set(used)) == 2


def test_warm_start_begins_past_the_boundary(model, source):
    cfg = replace(CFG, warm_start=1.5, noise=replace(NOISE, eps=0.01))
    pool, last, _ = noises(model, source, "authors", cfg)
    starts = []
    find_noises("learned", model, pool, cfg, round_=1, last=last, share=ALONE, search=Search(),
                on_step=lambda step, trace: starts.append(trace.norm[0]))  # fmt: skip
    assert starts[0] == pytest.approx(1.5 * boundary_scale(model, pool.heldout, last, 0.01).norm, rel=1e-4)
    cold = []
    find_noises("learned", model, pool, cfg, round_=0, last=None, share=ALONE, search=Search(),
                on_step=lambda step, trace: cold.append(trace.norm[0]))  # fmt: skip
    assert cold[0] == pytest.approx((96 / 3) ** 0.5, rel=0.2)


def test_without_early_stop_every_noise_step_is_made(model, source):
    made = finetune_model(model, source, replace(CFG, noise=replace(NOISE, eps=None, steps=7)))
    assert [(r.noises[0].steps, r.noises[0].converged) for r in made.history] == [(7, True)] * 2


def test_noise_that_does_not_reach_eps_is_told_and_used(model, source, tmp_path):
    cfg = replace(CFG, noise=replace(NOISE, steps=2, eps=1e-7))
    with pytest.warns(
        UserWarning, match=r"round \d: 2 noise steps did not reach eps = 1e-07 .*goes on with this noise"
    ):
        made = finetune_model(model, source, cfg, target=tmp_path / "w.safetensors")
    assert [r.noises[0].converged for r in made.history] == [False, False]
    assert made.record["missed_eps"] == [0, 1]
    assert [len(r.losses) for r in made.history] == [3, 3]


# Costs


@pytest.mark.parametrize(("name", "units"), [("plain", 3), ("nullspace", 6), ("madry", 2 * 2 + 3 + 1 / 8),
                                             ("trades", 1 + 2 * 2 + 6), ("sam", 6)])  # fmt: skip
def test_units_of_updates(model, source, name, units):
    """Of each image: forward, backward to the tokens, backward to the weights; an attack's step has no third."""
    made = finetune_model(model, source, replace(CFG, objective=name))
    assert [r.update_units for r in made.history] == [3 * 8 * units] * 2  # madry's attack looks at one image first


def test_units_of_noise(model, source):
    """Fixed steps: the pool once, each step forth and back, the last noise forth; held-out images at the end."""
    made = finetune_model(model, source, replace(CFG, rounds=1, noise=replace(NOISE, eps=None, steps=7)))
    assert made.history[0].noise_units == 48 + 7 * 2 * 16 + 16 + 16
    assert made.record["units"] == {"noise": made.history[0].noise_units, "updates": 3 * 8 * 6}
    total = made.history[0].noise_units + 3 * 8 * 6
    assert made.record["images_of_standard_training"] == pytest.approx(total / 3)


def test_meter_stops_with_its_block(model, source):
    with metered(model) as meter:
        model(source.take("train", 5).images)
    model(source.take("train", 5).images)
    assert meter.units == 5


def test_history_as_a_table(model, source):
    cfg = replace(CFG, noises=2)
    made = finetune_model(model, source, cfg, on_round=lambda k, model: {"twice": 2 * k})
    table = history_table(made.history)
    assert table["round"].tolist() == [0, 1]
    assert table["twice"].tolist() == [0, 2]
    for k, r in enumerate(made.history):
        assert table["norm"][k] == pytest.approx(sum(n.norm for n in r.noises) / 2)
        assert table["loss"][k] == pytest.approx(sum(r.losses) / 3)
    assert "norm" not in history_table(finetune_model(model, source, replace(CFG, objective="plain")).history)


def _fail(*_):
    raise FloatingPointError("mine")


def test_noises_are_measured_against_the_model_as_it_is_when_they_are_found(model, source):
    """In round 0 the one that was given; and what is measured there changes neither weights nor order."""
    seen = []

    def measure(number, current, noises):
        held = source.take("train", CFG.pool + CFG.heldout).images[CFG.pool :]
        gaps = [agreement(current, clean_pass(current, held), noise[None]).gap.mean().item() for noise in noises]
        seen.append((number, same(current, model), current.training))
        return {"gap": sum(gaps) / len(gaps)}

    cfg = replace(CFG, noises=2)
    made = finetune_model(model, source, cfg, on_noise=measure)
    assert seen == [(0, True, False), (1, False, False)]
    for r in made.history:
        assert r.influence["gap"] == pytest.approx(sum(n.gap_heldout for n in r.noises) / 2, rel=1e-5)
    assert same(made.model, finetune_model(model, source, cfg).model)
    finetune_model(model, source, replace(CFG, objective="plain"), on_noise=lambda *_: pytest.fail("there is none"))
    with pytest.raises(FloatingPointError, match=r"^mine$"):  # an error of the measurement is none of the run
        finetune_model(model, source, CFG, on_noise=_fail)


def test_rounds_are_measured_on_the_model_delivered(model, source):
    seen = []
    made = finetune_model(model, source, replace(CFG, ema=0.5), on_round=lambda k, model: seen.append(model) or {})
    assert len(seen) == 2
    assert same(seen[-1], made.model)
    assert not any(m.training for m in seen)


# Images


def test_endless_images_run_on_after_those_for_the_noise(model, source):
    stream = Stream(source, model, CFG, ALONE)
    assert torch.equal(stream.for_noise.images, source.take("train", 48).images)
    for s, batch in zip((3, 4), stream.batches(3, 5), strict=True):
        assert torch.equal(batch.images, source.take("train", 8, start=48 + 8 * s).images)
    updates = CFG.rounds * CFG.steps
    second = Stream(source, model, replace(CFG, seed=CFG.seed + 1), ALONE)
    assert torch.equal(second.for_noise.images, stream.for_noise.images)
    assert torch.equal(second.batch(0).images, stream.batch(updates).images)  # none that the seed before has seen


def test_each_pass_over_few_images_has_an_order_of_its_own(model):
    """50 images for training in batches of 8: passes end inside batches."""
    stream = Stream(FewImages(98), model, CFG, ALONE)
    seen = torch.cat([b.images[:, 0, 0, 0] for b in stream.batches(0, 25)]) * 98
    passes = seen.round().int().reshape(4, 50)
    assert all(p.sort().values.tolist() == list(range(48, 98)) for p in passes)
    assert len({tuple(p.tolist()) for p in passes}) == 4
    again = torch.cat([b.images[:, 0, 0, 0] for b in stream.batches(10, 25)]) * 98
    assert torch.equal(again, seen[80:])  # a resumed run sees what it would have seen


@pytest.mark.parametrize("kind", ["endless", "few"])
def test_processes_share_each_batch(model, source, kind):
    data = source if kind == "endless" else FewImages(98)
    whole = Stream(data, model, CFG, ALONE).batch(7)
    parts = [Stream(data, model, CFG, Share(rank, 4)).batch(7) for rank in range(4)]
    assert torch.equal(torch.cat([p.images for p in parts]), whole.images)
    assert torch.equal(torch.cat([p.labels for p in parts]), whole.labels)


@pytest.mark.parametrize("batch", ["batch", "noise.batch"])
def test_processes_that_do_not_divide_the_batch(model, source, batch):
    cfg = CFG if batch == "batch" else replace(CFG, batch=9)
    with pytest.raises(ValueError, match=r"a batch of (8|16) images cannot be shared equally by 3 .* multiple of 3"):
        finetune_model(model, source, cfg, share=Share(0, 3, lambda tensor: tensor))


def test_no_images_left_to_train_on(model):
    with pytest.raises(ValueError, match=r"train holds 48 images and pool \+ heldout = 48 .*: none is left"):
        finetune_model(model, FewImages(48), CFG)


def test_labels_that_are_no_classes_of_the_head(source):
    seven = make_vit("shapes_vit", **TINY | dict(num_classes=7))
    with pytest.raises(
        ValueError,
        match=r"labels must lie in 0\.\.6, .*got 0\.\.9: give it a head by nslib.models.reset_head.*classes=10",
    ):
        finetune_model(seven, source, replace(CFG, objective="plain", batch=64))


def test_data_set_with_fewer_classes_than_the_head(source):
    twelve = make_vit("shapes_vit", **TINY | dict(num_classes=12))
    with pytest.raises(ValueError, match=r"shapes has 10 classes and the head of shapes_vit 12: .*num_classes=10"):
        finetune_model(twelve, source, CFG)


# Augmentation


def augmented(model, n=16, **change):
    images, labels = ShapesSource(DataConfig(), model).take("train", n)
    with seeded(7, torch.device("cpu")):
        found, targets = Augment(model, replace(CFG, **change), n)(images, labels)
    return images, labels, found, targets


def test_nothing_is_augmented_by_default(model):
    images, labels, found, targets = augmented(model)
    assert found is images
    assert targets is labels


@pytest.mark.parametrize(
    "change",
    [dict(mixup=0.8), dict(cutmix=1.0), dict(mixup=0.8, cutmix=1.0, smoothing=0.1), dict(erasing=0.9),
     dict(augment="rand-m9-mstd0.5-inc1"), dict(augment="augmix-m3-w3")],
)  # fmt: skip
def test_augmentation_is_seeded_and_stays_in_range(model, change):
    images, labels, found, targets = augmented(model, **change)
    _, _, again, targets_again = augmented(model, **change)
    assert torch.equal(found, again)
    assert torch.equal(targets, targets_again)
    assert found.shape == images.shape
    assert not torch.equal(found, images)
    assert -1e-6 <= found.min() <= found.max() <= 1 + 1e-6
    if {"mixup", "cutmix"} & change.keys():
        assert targets.shape == (16, 10)
        assert torch.allclose(targets.sum(1), torch.ones(16))
    else:
        assert targets is labels


def test_smoothed_labels_by_hand(model):
    _, labels, _, targets = augmented(model, smoothing=0.2)
    assert torch.allclose(targets, F.one_hot(labels, 10) * 0.8 + 0.02)


def test_augmentation_leaves_the_callers_images_and_generators(model):
    images, labels = ShapesSource(DataConfig(), model).take("train", 8)
    kept = images.clone()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    with seeded(3, torch.device("cpu")):
        Augment(model, replace(CFG, mixup=0.8, erasing=1.0, augment="rand-m9-mstd0.5"), 8)(images, labels)
    assert torch.equal(images, kept)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize("name", ["randaugment", "rnd-m9", "rand-q9", "rand-foo", "augmix-w-m3", "augmix-tweights"])
def test_unknown_policy(model, name):
    with pytest.raises(ValueError, match=f"augment must be such as rand-m9-mstd0.5-inc1 or augmix-m3-w3, got '{name}'"):
        Augment(model, replace(CFG, augment=name), 8)


@pytest.mark.parametrize(
    "name", ["rand", "rand-m9-n3-p0.5-mstd0.5-mmax12-inc1", "rand-tweights", "rand-t3aw-m5", "augmix-m5-w4-d2"]
)
def test_spellings_of_timm(model, name):
    assert Augment(model, replace(CFG, augment=name), 8).policy is not None


def test_odd_batch_cannot_be_mixed(model):
    with pytest.raises(ValueError, match="pair the images of a process's batch, got 5: make it even"):
        augmented(model, n=5, mixup=0.8)


@pytest.mark.parametrize("change", [dict(augment="rnd-m9"), dict(mixup=0.8, batch=7)])
def test_augmentation_that_cannot_be_is_refused_before_anything_is_learned(model, source, tmp_path, change):
    moments = []
    with pytest.raises(ValueError, match=r"augment must be such as|make it even"):
        finetune_model(model, source, replace(CFG, **change), target=tmp_path / "w.safetensors", on_step=moments.append)
    assert not moments
    assert not list(tmp_path.iterdir())


def test_drop_path_rises_and_is_off_in_evaluation(model, source):
    deep = make_vit("shapes_vit", **TINY | dict(depth=3))
    images = source.take("train", 4).images
    before = deep(images)
    with_drop, without = (finetune_model(deep, source, replace(CFG, objective="plain", drop_path=d)) for d in (0.4, 0))
    assert with_drop.history[0].losses != without.history[0].losses
    assert weights(with_drop.model).keys() == weights(deep).keys()
    assert repr(with_drop.model.vit) == repr(deep.vit)  # as the model that its file gives: no branch is dropped later
    assert not deep.vit.blocks[2].drop_path1.__dict__.get("drop_prob")  # the caller's model is as it was

    set_drop_path(deep, 0.4)
    assert [b.drop_path1.drop_prob for b in deep.vit.blocks] == pytest.approx([0, 0.2, 0.4])
    assert torch.equal(deep(images), before)
    assert not torch.equal(deep.train()(images), before)


def test_every_strength_of_posterize_is_possible(model):
    """The end of timm's scale is 0 bits, at which Pillow raises: drawn by chance, in the middle of a training."""
    for name in ("rand-m10-inc1", "rand-m0"):
        policy = Augment(model, replace(CFG, augment=name), 8).policy
        (posterize,) = (op for op in policy.ops if op.name.startswith("Posterize") and op.name != "PosterizeOriginal")
        posterize.prob = 1.0
        picture = to_pil_image(torch.rand(3, 24, 24, generator=generator(0)))
        assert set(np.unique(np.asarray(posterize(picture)))) == {0, 128}  # one bit a channel


def test_drop_path_of_other_blocks():
    parallel = make_vit("vit_small_patch16_18x2_224")
    with pytest.raises(
        ValueError, match="drop_path must be 0 for vit_small_patch16_18x2_224, whose blocks are Parallel"
    ):
        set_drop_path(parallel, 0.1)


def test_draws_depend_on_seed_purpose_and_place():
    found = [number(s, p, r, u) for s in (0, 1) for p in PURPOSES for r in range(3) for u in range(3)]
    assert len(set(found)) == len(found)
    assert min(found) >= 0


# Results


def test_timm_loads_the_result_as_it_is(model, source, tmp_path):
    target = tmp_path / "w.safetensors"
    made = finetune_model(model, source, CFG, target=target)
    assert files_in(tmp_path) == ["w.json", "w.jsonl", "w.safetensors"]
    plain = timm.models.VisionTransformer(patch_size=12, num_classes=10, **TINY).eval()
    timm.models.load_checkpoint(plain, str(target))
    images = source.take("val", 4).images
    assert torch.allclose(plain((images - 0.5) / 0.5), made.model(images), atol=1e-5)
    again = load_model("shapes_vit", target, **TINY)
    assert same(again, made.model)


def test_record_and_log_say_how_it_was_made(model, source, tmp_path):
    made = finetune_model(model, source, CFG, target=tmp_path / "w.safetensors")
    record = json.loads((tmp_path / "w.json").read_text())
    assert record == made.record
    assert record["config"]["finetune"]["noise"]["eps"] == 0.03
    assert record["config"]["data"] == source.identity("train")
    assert (record["images"], record["processes"], record["missed_eps"]) == (48, 1, [])
    assert {"torch", "timm"} <= record["versions"].keys()
    lines = [json.loads(line) for line in (tmp_path / "w.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1]
    assert [line["losses"] for line in lines] == [r.losses for r in made.history]


def test_what_is_made_is_loaded_not_made_again(model, source, tmp_path, monkeypatch):
    target = tmp_path / "w.safetensors"
    made = finetune_model(model, source, CFG, target=target)
    monkeypatch.setattr(rounds, "Trainer", None)
    again = finetune_model(model, source, CFG, target=target)
    assert same(again.model, made.model)
    assert again.history == made.history
    assert again.record == made.record
    assert (made.found, again.found) == (False, True)


def test_loss_that_is_not_finite_gives_back_the_last_good_weights(model, source, tmp_path):
    cfg = replace(CFG, objective="plain", lr=1e30, clip=1e30)
    with pytest.raises(FinetuneDiverged, match=r"round 0, update \d: loss (nan|inf), .*lower lr or clip") as error:
        finetune_model(model, source, cfg, target=tmp_path / "w.safetensors")
    assert error.value.round == 0
    assert same(error.value.model, model)
    assert not (tmp_path / "w.safetensors").exists()
    saved = torch.load(tmp_path / "w.training.pt", weights_only=True)
    assert all(w.isfinite().all() for w in saved["model"].values())
    told = (
        f"cannot go on from the last good state, remove it then: {tmp_path / 'w.training.pt'}, round 0 after 0 updates"
    )
    assert told in str(error.value)
    lower = replace(cfg, lr=1e-3)
    with pytest.raises(ValueError, match=r"w\.training\.pt was made with other settings: finetune\.lr was 1e\+30"):
        finetune_model(model, source, lower, target=tmp_path / "w.safetensors")
    (tmp_path / "w.training.pt").unlink()
    finetune_model(model, source, lower, target=tmp_path / "w.safetensors")


def test_a_bad_last_update_of_a_round_is_told_before_it_is_saved(model, source, tmp_path):
    """Its loss was finite: only what the model answers afterwards shows it."""
    cfg = replace(CFG, steps=1, lr=1e30, clip=1e30)
    with pytest.raises(FinetuneDiverged, match="round 0, update 1: logits after the update are not finite") as error:
        finetune_model(model, source, cfg, target=tmp_path / "w.safetensors")
    assert same(error.value.model, model)
    saved = torch.load(tmp_path / "w.training.pt", weights_only=True)
    assert all(torch.equal(saved["model"][n], w) for n, w in weights(model).items())
    assert not (tmp_path / "w.safetensors").exists()


def test_a_later_round_that_fails_leaves_the_weights_from_before_it(model, source, tmp_path, monkeypatch):
    """Other settings can start from them: nineteen good rounds are not lost with the twentieth."""
    target, seen, update = tmp_path / "w.safetensors", [], Trainer.update
    cfg = replace(CFG, objective="plain", rounds=3)

    def failing(self, *args):
        if len(seen) == 1:
            raise FloatingPointError("loss nan, gradient norm nan")
        return update(self, *args)

    def keep(number, made):
        seen.append(made)
        return {}

    monkeypatch.setattr(Trainer, "update", failing)
    with pytest.raises(FinetuneDiverged, match=r"round 1, update 1: loss nan, .* they can start from") as error:
        finetune_model(model, source, cfg, target=target, on_round=keep)
    good = tmp_path / "w.good.safetensors"
    assert str(error.value).endswith(f"before this round: {good}")
    assert same(error.value.model, seen[0])
    assert not same(seen[0], model)
    assert all(torch.equal(load_file(good)[n], w) for n, w in weights(seen[0]).items())
    monkeypatch.setattr(Trainer, "update", update)
    finetune_model(model, source, cfg, target=target)
    assert not good.exists()


def test_noise_that_is_not_finite_is_told_by_round_and_step(model, source):
    with pytest.raises(FinetuneDiverged, match=r"round 0, noise step 1: loss nan; lower noise\.lr or noise") as error:
        finetune_model(model, source, replace(CFG, noise=replace(NOISE, lr=1e30, eps=1e-6)))
    assert (error.value.round, error.value.step) == (0, 1)
    assert "remove" not in str(error.value)  # nothing was saved
    assert same(error.value.model, model)


def test_what_is_no_model_or_no_data_set(model, source):
    with pytest.raises(TypeError, match=r"must be a StagedViT, got VisionTransformer: wrap a ViT of timm as nslib"):
        finetune_model(model.vit, source, CFG)
    with pytest.raises(TypeError, match=r"got a DataConfig: nslib\.open_source\(cfg, model\) opens it"):
        finetune_model(model, DataConfig(), CFG)
    with pytest.raises(TypeError, match=r"got a DataConfig: nslib\.open_source\(cfg, model\) opens it"):
        evaluate_model(model, DataConfig())


def test_the_record_tells_what_a_loader_has_to_know(model, source, tmp_path):
    made = finetune_model(model, source, replace(CFG, objective="plain"), target=tmp_path / "w.safetensors")
    assert made.record["takes"] == {"images": [3, 24, 24], "mean": [0.5] * 3, "std": [0.5] * 3, "classes": []}


def test_training_mode(model, source):
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        finetune_model(model.train(), source, CFG)


def test_progress_is_told_in_both_phases(model, source):
    moments = []
    made = finetune_model(model, source, CFG, on_step=moments.append)
    for k, r in enumerate(made.history):
        mine = [m for m in moments if m.round == k]
        noise = [m for m in mine if m.phase == "noise"]
        updates = [m for m in mine if m.phase == "update"]
        assert [m.step for m in noise] == list(range(r.noises[0].steps + 1))
        assert noise[-1].values["norm"] == pytest.approx(r.noises[0].norm)
        assert [m.values["loss"] for m in updates] == r.losses
        assert [m.step for m in updates] == [1, 2, 3]


def test_bar_moves_during_a_search(model, source, capsys):
    with finetune_bar(CFG) as on_step:
        finetune_model(model, source, replace(CFG, noise=replace(NOISE, eps=None, steps=12)), on_step=on_step)
    told = capsys.readouterr().err
    assert "noise step=0" in told
    assert "noise step=10" in told


def test_time_left_by_searches_and_updates():
    """Four rounds with a search of 100 s and ten updates of 1 s each."""
    left = _TimeLeft(FinetuneConfig(rounds=4, steps=10))

    def after(seconds, round_, phase, step):
        return left(Moment(round_, phase, step, {}), seconds)

    assert after(0, 0, "noise", 0) is None
    assert after(100, 0, "noise", 50) is None
    assert after(101, 0, "update", 1) is None  # which may be slower than the others
    assert after(103, 0, "update", 3) == pytest.approx(7 + 3 * 110)
    assert after(110, 0, "update", 10) == pytest.approx(3 * 110)
    assert after(110, 1, "noise", 0) == pytest.approx(3 * 110)
    assert after(160, 1, "noise", 25) == pytest.approx(3 * 110 - 50)
    assert after(330, 3, "noise", 0) == pytest.approx(110)
    assert after(431, 3, "update", 1) == pytest.approx(9)
    assert after(500, 3, "update", 2) == 0


def test_time_left_of_a_run_that_goes_on():
    """What is left of the round in which it was stopped tells nothing of the others."""
    left = _TimeLeft(FinetuneConfig(rounds=4, steps=10))
    assert [left(Moment(1, "update", step, {}), step) for step in (8, 9, 10)] == [None, None, None]
    assert left(Moment(2, "noise", 0, {}), 10) is None
    assert left(Moment(2, "update", 1, {}), 111) is None
    assert left(Moment(2, "update", 3, {}), 113) == pytest.approx(7 + 110)


def test_after_a_divergence_the_weights_are_no_average(model, source, tmp_path, monkeypatch):
    """The average is of a thousand updates: it would be nearly the model that was begun with."""
    update, cfg = Trainer.update, replace(CFG, objective="plain", rounds=2, ema=0.9999)

    def failing(self, *args):
        failing.made += 1
        if failing.made > cfg.steps:
            raise FloatingPointError("loss nan")
        return update(self, *args)

    failing.made = 0
    monkeypatch.setattr(Trainer, "update", failing)
    with pytest.raises(FinetuneDiverged) as error:
        finetune_model(model, source, cfg, target=tmp_path / "w.safetensors")
    saved = torch.load(tmp_path / "w.training.pt", weights_only=True)
    for made in (load_file(tmp_path / "w.good.safetensors"), weights(error.value.model)):
        assert all(torch.equal(made[n], w) for n, w in saved["model"].items())
        assert not all(torch.equal(made[n], w) for n, w in saved["ema"].items())


def test_saved_weights_are_those_returned(model, source, tmp_path):
    made = finetune_model(model, source, replace(CFG, ema=0.9), target=tmp_path / "w.safetensors")
    saved = load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(saved[n], w) for n, w in weights(made.model).items())


def test_trades_attack_climbs_its_own_divergence(model, source):
    """One step along the gradient's sign of KL(f(x) || f(x')), from so far that the reversed one has others."""
    cfg = replace(CFG, attack_steps=1, attack_eps=0.5, attack_step=0.01)
    view = view_of(model, source)
    start = against_itself(model, view, replace(cfg, attack_step=0.0), generator(0)).requires_grad_()
    p, q = model(view.images).softmax(1).detach(), model(start).softmax(1)
    (uphill,) = torch.autograd.grad((p * (p.log() - q.log())).sum(), start, retain_graph=True)
    (other,) = torch.autograd.grad((q * (q.log() - p.log())).sum(), start)
    moved = against_itself(model, view, cfg, generator(0)) - start.detach()
    inner = moved.abs() > 0.005  # neither clamped to the ball nor to [0, 1]
    assert (moved.sign() == uphill.sign())[inner].float().mean() > 0.99
    assert (moved.sign() == other.sign())[inner].float().mean() < 0.98


@pytest.mark.parametrize("attack", [against_labels, against_itself])
def test_attacks_begin_anywhere_in_the_ball(model, source, attack):
    view, cfg = view_of(model, source), replace(CFG, attack_step=0.0)
    first, again, other = (attack(model, view, cfg, generator(s)) - view.images for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    inner = (view.images > cfg.attack_eps) & (view.images < 1 - cfg.attack_eps)
    assert first[inner].abs().mean().item() == pytest.approx(cfg.attack_eps / 2, rel=0.05)


def test_each_update_draws_for_itself(model, source, monkeypatch):
    """Attack and augmentation of each seed, update and process; which noise is one choice for all processes."""
    drawn = []
    for name in ("draws", "number"):
        make = getattr(rounds, name)
        monkeypatch.setattr(rounds, name, lambda *place, make=make: drawn.append(place) or make(*place))
    cfg = replace(CFG, noises=2, noise=replace(NOISE, eps=None, steps=1))
    for seed in (0, 1):
        for rank in (0, 1):
            share = Share(rank, 2, gather=lambda own: own * 2)
            finetune_model(model, source, replace(cfg, seed=seed), share=share)
    for purpose, times in (("attack", 1), ("augment", 1), ("choice", 2)):
        own = [place for place in drawn if place[1] == purpose]
        assert len(own) == times * len(set(own)) == 2 * 2 * CFG.rounds * CFG.steps


def test_mixed_targets_are_smoothed_too(model):
    _, _, _, targets = augmented(model, mixup=0.8, smoothing=0.2)
    assert targets.min().item() == pytest.approx(0.2 / 10)


def test_what_is_erased_becomes_noise_around_the_mean(model):
    """N(0, 1) in normalised images is as often above their mean as below it."""
    images, _, found, _ = augmented(model, erasing=1.0)
    erased = found[(found - images).abs() > 1e-3]
    assert len(erased) > 300
    assert erased.mean().item() == pytest.approx(0.5, abs=0.05)
    assert 0.1 < (erased == 0).float().mean() < 0.25  # below -1 std


def test_few_images_come_in_the_seeds_order(model):
    streams = [Stream(FewImages(98), model, replace(CFG, seed=s), ALONE) for s in (0, 0, 1)]
    first, again, other = (torch.cat([b.images for b in stream.batches(0, 6)]) for stream in streams)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", ["learned", "permuted", "authors", "boundary"])
def test_seeds_draw_different_noises(model, source, kind):
    first, again, other = (noises(model, source, kind, replace(CFG, seed=s))[1] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first / first.norm(), other / other.norm())


def test_random_noise_is_scaled_on_heldout_images(model, source):
    pool, noise, _ = noises(model, source, "boundary")
    heldout, train = (
        random_noise_at(model, part, NOISE.eps, rule="boundary", generator=draws(CFG.seed, "noise", 0, 0)).noise
        for part in (pool.heldout, pool.train)
    )
    assert torch.equal(noise, heldout)
    assert not torch.equal(noise, train)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixup_blends_and_cutmix_cuts(model, name):
    images, _, found, _ = augmented(model, **{name: 1.0})
    of_one = (found == images) | (found == images.flip(0))  # timm pairs the first image with the last
    assert of_one.all().item() == (name == "cutmix")


def test_a_policy_fills_with_the_mean(model):
    policy = Augment(model, replace(CFG, augment="rand-m9"), 8).policy
    assert {op.kwargs["fillcolor"] for op in policy.ops} == {(128, 128, 128)}
