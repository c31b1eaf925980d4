"""Learned noise and membership: the gap by hand, the search by its trace, the boundary by the definition."""

import math
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch
from conftest import random_images

from nslib.config import NoiseConfig
from nslib.machine.processes import Share
from nslib.nullspace import membership, stored
from nslib.nullspace.encoder import NoiseDiverged, learn_noise, start_noise, step_images
from nslib.nullspace.membership import (
    CleanPass,
    EpsTest,
    Pool,
    agreement,
    boundary_scale,
    clean_pass,
    inside,
    make_pool,
    match_rate,
    noise_gap,
    permute,
    probability_gap,
    random_noise_at,
)
from nslib.nullspace.stored import stored_noise
from nslib.runtime import generator, store_path

CFG = NoiseConfig(limit=1.0, lr=0.05, steps=60, batch=16, eps=0.03)
FIXED = replace(CFG, eps=None, steps=15)


def learn(vit, pool, cfg=CFG, seed=0, **kwargs):
    return learn_noise(vit, pool, cfg, generator=generator(seed), **kwargs)


def direction(vit, seed=0):
    return torch.randn(1, *vit.token_shape, generator=generator(seed))


# Gap and match


def test_gap_by_hand():
    """Softmax of (0, log 3) is (1/4, 3/4), of (0, 0) it is (1/2, 1/2): 2 (1/4)^2 apart. Opposite corners: 2."""
    noisy = torch.tensor([[0.0, math.log(3)], [5.0, 5.0], [100.0, 0.0]])
    clean = torch.tensor([[0.0, 0.0], [7.0, 7.0], [0.0, 100.0]])
    assert probability_gap(noisy, clean).tolist() == pytest.approx([0.125, 0, 2])


def test_agreement_is_the_models_own_forward(vit, pool):
    noise = direction(vit)
    found = agreement(vit, pool.heldout, noise, batch=7)
    with torch.no_grad():
        noisy = vit.logits_from_tokens(pool.heldout.tokens + noise)
    gap = (noisy.softmax(1) - pool.heldout.logits.softmax(1)).pow(2).sum(1)
    assert torch.allclose(found.gap, gap, atol=1e-5)
    assert torch.equal(found.match, noisy.argmax(1) == pool.heldout.logits.argmax(1))
    assert 0 < found.match.float().mean() < 1  # the test can tell
    assert noise_gap(vit, pool.heldout, noise) == pytest.approx(gap.mean().item(), abs=1e-5)
    assert match_rate(vit, pool.heldout, noise) == found.match.float().mean().item()


def test_no_noise_is_no_gap(vit, pool):
    zero = torch.zeros(1, *vit.token_shape)
    assert noise_gap(vit, pool.train, zero) < 1e-10
    assert match_rate(vit, pool.train, zero) == 1


def test_pool_is_one_forward_pass_cut_in_two(vit):
    images = random_images(vit, 10)
    pool = make_pool(vit, images, heldout=3, batch=4)
    assert (len(pool.train), len(pool.heldout)) == (7, 3)
    with torch.no_grad():
        tokens = vit.embed(images)
        logits = vit(images)
    assert torch.allclose(torch.cat([pool.train.tokens, pool.heldout.tokens]), tokens, atol=1e-5)
    assert torch.allclose(torch.cat([pool.train.logits, pool.heldout.logits]), logits, atol=1e-4)
    assert not pool.train.logits.requires_grad


def test_inside_is_exact_and_gives_up_early(vit, pool):
    noise = direction(vit)
    full = agreement(vit, pool.train, noise, batch=8)
    mean = full.gap.mean().item()
    for eps in (mean * 0.05, mean * 0.5, mean * 0.999, mean * 1.001, mean * 1.5):
        test = inside(vit, pool.train, noise, eps, batch=8)
        assert test.inside == (mean < eps)
        assert test.gap == pytest.approx(full.gap[: test.seen].sum().item() / len(full.gap), rel=1e-4)
        if test.inside:
            assert test.seen == len(pool.train)
    assert inside(vit, pool.train, noise, mean * 0.05, batch=8).seen == 8


def test_inside_says_no_to_what_is_not_finite(vit, pool):
    noise = torch.full((1, *vit.token_shape), math.nan)
    assert not inside(vit, pool.heldout, noise, 2.0).inside


# Learning


def test_learning_brings_the_noise_inside(vit, pool):
    found = learn(vit, pool)
    trace = found.trace
    assert found.converged
    assert 0 < found.steps < CFG.steps
    assert len(trace.gap) == len(trace.loss) == len(trace.norm) == found.steps + 1
    assert trace.gap[0] > 5 * CFG.eps  # it began outside
    assert found.gap_heldout < CFG.eps
    assert found.gap_heldout == pytest.approx(noise_gap(vit, pool.heldout, found.noise), abs=1e-6)
    assert found.match_heldout == match_rate(vit, pool.heldout, found.noise)
    assert found.norm == pytest.approx(found.noise.norm().item()) == trace.norm[-1]
    assert found.gap_batch == trace.gap[-1] < CFG.eps
    assert found.noise.shape == (1, 4, 48)
    assert not found.noise.requires_grad


def test_heldout_tests_are_noted(vit, pool):
    """With few images to learn from, the batch is inside before the held-out images are."""
    few = pool._replace(train=pool.train[:12])
    found = learn(vit, few, replace(CFG, batch=8, steps=200))
    assert found.converged
    (*failed, (step, gap, seen)) = found.trace.tests
    assert len(failed) >= 2
    assert all(s < step and g >= CFG.eps for s, g, _ in failed)
    assert min(seen for _, _, seen in failed) < len(pool.heldout)  # abandoned when the answer was plain
    assert (step, seen) == (found.steps, len(pool.heldout))
    assert gap == pytest.approx(found.gap_heldout, abs=1e-6)
    assert gap < CFG.eps


def test_first_step_by_hand(vit, pool):
    """The whole pool as one batch: loss mean ||f(u + v) - f(u)||, then one AdamW step, which moves by lr at most."""
    cfg = replace(FIXED, steps=1, batch=48, weight_decay=0.0)
    start = direction(vit) * 0.3
    found = learn(vit, pool, cfg, start=start)
    v = start.clone().requires_grad_(True)
    loss = (vit.logits_from_tokens(pool.train.tokens + v) - pool.train.logits).norm(dim=1).mean()
    (gradient,) = torch.autograd.grad(loss, v)
    assert found.trace.loss[0] == pytest.approx(loss.item(), rel=1e-4)
    big = gradient.abs() > 1e-4 * gradient.abs().max()
    assert big.float().mean() > 0.9
    assert torch.allclose((found.noise - start)[big], -cfg.lr * gradient.sign()[big], rtol=1e-2)


def test_regularisation_is_in_the_loss(vit, pool):
    start = direction(vit)
    plain = learn(vit, pool, replace(FIXED, steps=1), start=start)
    pulled = learn(vit, pool, replace(FIXED, steps=1, regularization=0.5), start=start)
    assert pulled.trace.loss[0] == pytest.approx(plain.trace.loss[0] - 0.5 * math.log(start.norm().item()), rel=1e-5)


def test_regularisation_keeps_the_norm_up(vit, pool):
    norms = [learn(vit, pool, replace(FIXED, steps=40, regularization=strength)).norm for strength in (0, 0.5, 5)]
    assert norms[0] < norms[1] < norms[2]


def test_without_eps_every_step_is_made(vit, pool):
    found = learn(vit, pool, FIXED)
    assert found.steps == FIXED.steps
    assert found.converged
    assert found.trace.tests == []
    assert found.trace.loss[-1] < found.trace.loss[0]


def test_steps_that_run_out_are_told(vit, pool):
    found = learn(vit, pool, replace(CFG, steps=3, eps=1e-6))
    assert not found.converged
    assert found.steps == 3
    assert found.gap_heldout > 1e-6
    assert [step for step, _, _ in found.trace.tests] == [3]  # whatever the batch says, the last noise is tested


def test_a_noise_that_gets_inside_at_the_last_step_has_converged(vit, pool):
    """Also between two steps at which held-out images would be asked, and where the batch is not inside."""
    whole = learn(vit, pool)
    found = learn(vit, pool, replace(CFG, eps=whole.gap_heldout * 1.5, steps=1), start=whole.noise)
    outside = replace(CFG, eps=min(found.trace.gap) * 0.999, steps=1)
    last = learn(vit, pool, outside, start=whole.noise)
    assert last.converged == (last.gap_heldout < outside.eps)
    assert found.converged


def test_stop_on_the_batch_as_the_authors_do(vit, pool):
    found = learn(vit, pool, replace(CFG, stop_on="batch"))
    assert found.converged
    assert found.trace.tests == []
    assert found.gap_batch < CFG.eps
    assert all(gap >= CFG.eps for gap in found.trace.gap[:-1])  # the first that is inside


def test_heldout_stopping_is_no_earlier_than_the_batchs(vit, pool):
    assert learn(vit, pool).steps >= learn(vit, pool, replace(CFG, stop_on="batch")).steps


def test_parameters_are_left_as_they_were(vit, pool):
    vit.vit.head.requires_grad_(False)
    flags = [p.requires_grad for p in vit.parameters()]
    before = [p.clone() for p in vit.parameters()]
    learn(vit, pool, FIXED)
    assert [p.requires_grad for p in vit.parameters()] == flags
    assert all(p.grad is None for p in vit.parameters())
    assert all(torch.equal(p, b) for p, b in zip(vit.parameters(), before, strict=True))


def test_only_one_backward_reaches_the_input(vit, pool):
    """No tensor of the pool is asked for a gradient, and the caller's start is not written to."""
    start = direction(vit)
    kept = start.clone()
    learn(vit, pool, FIXED, start=start)
    assert torch.equal(start, kept)
    assert not start.requires_grad
    assert not any(t.requires_grad for part in pool for t in (part.tokens, part.logits))


def test_learning_works_where_gradients_are_off(vit, pool):
    with torch.no_grad():
        assert learn(vit, pool, FIXED).trace.loss[-1] > 0


def test_same_seed_same_noise(vit, pool):
    a, b, c = (learn(vit, pool, FIXED, seed=s) for s in (0, 0, 1))
    assert torch.equal(a.noise, b.noise)
    assert a.trace == b.trace
    assert not torch.equal(a.noise, c.noise)


def test_progress_is_told_before_each_update(vit, pool):
    steps = []
    found = learn(vit, pool, FIXED, on_step=lambda step, trace: steps.append((step, len(trace.gap))))
    assert steps == [(i, i + 1) for i in range(found.steps + 1)]


def test_start_is_uniform(vit):
    start = start_noise(vit, 2.0, generator=generator(0))
    assert start.shape == (1, 4, 48)
    assert -2 < start.min() < -1.9 < 1.9 < start.max() < 2
    assert start.norm().item() == pytest.approx(2 * (4 * 48 / 3) ** 0.5, rel=0.1)


def test_stored_noise_is_learned_once(vit, pool, monkeypatch):
    found = stored_noise(vit, pool, CFG, seed=4)
    again = learn(vit, pool, CFG, seed=4)
    assert torch.equal(found.noise, again.noise)
    timeless = {k: v for k, v in asdict(found).items() if k not in ("noise", "seconds")}
    assert timeless["trace"]["gap"] == again.trace.gap
    assert (found.steps, found.norm, found.converged) == (again.steps, again.norm, again.converged)

    def refuse(*args, **kwargs):
        raise AssertionError("learned again")

    monkeypatch.setattr(stored, "learn_noise", refuse)
    kept = stored_noise(vit, pool, CFG, seed=4)
    assert torch.equal(kept.noise, found.noise)
    for other in (dict(seed=5), dict(cfg=replace(CFG, lr=0.04)), dict(pool=Pool(pool.train, pool.train))):
        with pytest.raises(AssertionError, match="learned again"):
            stored_noise(vit, **(dict(pool=pool, cfg=CFG, seed=4) | other))


@pytest.mark.parametrize("cfg", [replace(CFG, eps=None, steps=9), replace(CFG, steps=200)])
def test_a_search_that_was_killed_goes_on(vit, pool, monkeypatch, cfg):
    monkeypatch.setattr(stored, "_STEPS", 2)
    monkeypatch.setattr(stored, "_SECONDS", 0.0)
    whole = learn(vit, pool, cfg, seed=6)
    assert whole.steps > 7
    seen = []

    @contextmanager
    def kill_at(last, cfg):
        def on_step(step, trace):
            seen.append(step)
            if step == last:
                raise KeyboardInterrupt

        yield on_step

    for last in (3, 7):
        monkeypatch.setattr(stored, "noise_bar", partial(kill_at, last))
        with pytest.raises(KeyboardInterrupt):
            stored_noise(vit, pool, cfg, seed=6)
    monkeypatch.setattr(stored, "noise_bar", partial(kill_at, None))
    found = stored_noise(vit, pool, cfg, seed=6)
    assert seen == [*range(4), *range(2, 8), *range(6, whole.steps + 1)]
    assert torch.equal(found.noise, whole.noise)
    assert (found.steps, found.trace.gap) == (whole.steps, whole.trace.gap)
    assert [tuple(test) for test in found.trace.tests] == whole.trace.tests
    assert not list(store_path().glob("noise/*.search.pt"))


# When it cannot work


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_empty_part_of_the_pool(vit, pool, part):
    with pytest.raises(ValueError, match=f"the pool's {part} part is empty: it needs at least one image"):
        learn(vit, pool._replace(**{part: pool.train[:0]}))


@pytest.mark.parametrize("heldout", [0, 5, 6, -1])
def test_pool_that_leaves_a_part_empty(vit, heldout):
    with pytest.raises(ValueError, match=f"both parts non-empty: 0 < heldout < 5 images, got {heldout}"):
        make_pool(vit, random_images(vit, 5), heldout=heldout)


def test_no_images(vit):
    with pytest.raises(ValueError, match="a pool and its held-out part need at least one each"):
        clean_pass(vit, random_images(vit, 0))


@pytest.mark.parametrize(
    ("images", "message"),
    [(torch.rand(2, 3, 16, 16), "resize first"), (torch.rand(2, 3, 32, 32) * 255, "pass raw pixels / 255")],
)
def test_wrong_images(vit, images, message):
    with pytest.raises(ValueError, match=message):
        clean_pass(vit, images)


@pytest.mark.parametrize("eps", [0, -0.1, 2.1, math.nan])
def test_eps_out_of_range(vit, pool, eps):
    noise = direction(vit)
    with pytest.raises(ValueError, match=r"must be a squared l2 gap in \(0, 2\]"):
        replace(CFG, eps=eps)
    for call in (
        lambda: inside(vit, pool.heldout, noise, eps),
        lambda: boundary_scale(vit, pool.heldout, noise, eps),
        lambda: random_noise_at(vit, pool.heldout, eps, generator=generator(0)),
    ):
        with pytest.raises(ValueError, match=r"must lie in \(0, 2\], got"):
            call()


def test_noise_that_does_not_fit(vit, pool):
    with_class_token = torch.zeros(1, 5, 48)
    for call in (
        lambda: learn(vit, pool, start=with_class_token),
        lambda: noise_gap(vit, pool.heldout, with_class_token),
        lambda: inside(vit, pool.heldout, with_class_token, 0.1),
        lambda: boundary_scale(vit, pool.heldout, with_class_token + 1, 0.1),
    ):
        with pytest.raises(ValueError, match="drop the class token"):
            call()
    with pytest.raises(ValueError, match=r"use noise\.to"):
        match_rate(vit, pool.heldout, torch.zeros(1, 4, 48, dtype=torch.float64))


def test_training_mode(vit, pool):
    vit.train()
    for call in (
        lambda: learn(vit, pool),
        lambda: noise_gap(vit, pool.heldout, direction(vit)),
        lambda: clean_pass(vit, random_images(vit, 2)),
    ):
        with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
            call()


def test_empty_clean_pass(vit, pool):
    with pytest.raises(ValueError, match="needs at least one image"):
        noise_gap(vit, pool.heldout[:0], direction(vit))


def test_divergence_keeps_the_last_good_noise(vit, pool):
    cfg = replace(FIXED, lr=1e30)
    start = direction(vit)
    with pytest.raises(NoiseDiverged, match=r"loss is nan at step 1 of .*lr=1e\+30.*: lower its lr or limit") as error:
        learn(vit, pool, cfg, start=start)
    assert error.value.step == 1
    assert error.value.cfg == cfg
    assert torch.equal(error.value.noise, start)
    assert all(p.requires_grad for p in vit.parameters())


def test_divergence_at_once(vit, pool):
    broken = CleanPass(pool.train.tokens, torch.full_like(pool.train.logits, math.nan))
    with pytest.raises(NoiseDiverged, match="loss is nan at step 0"):
        learn(vit, pool._replace(train=broken), FIXED)


# Controls and the boundary


def test_permutation_keeps_elements_and_norm(vit):
    noise = direction(vit)
    kept = noise.clone()
    shuffled = permute(noise, generator=generator(0))
    assert shuffled.shape == noise.shape
    assert torch.equal(shuffled.flatten().sort().values, noise.flatten().sort().values)
    assert shuffled.norm().item() == pytest.approx(noise.norm().item())
    assert (shuffled == noise).float().mean() < 0.1
    assert torch.equal(noise, kept)
    assert torch.equal(shuffled, permute(noise, generator=generator(0)))
    token_of = {value: place // 48 for place, value in enumerate(noise.flatten().tolist())}
    moved = [token_of[v] != place // 48 for place, v in enumerate(shuffled.flatten().tolist())]
    assert 0.6 < sum(moved) / len(moved) < 0.9  # over all places: three of four change the token


@pytest.mark.parametrize("eps", [0.01, 0.1, 0.5])
def test_boundary_is_just_inside(vit, pool, eps):
    ray = direction(vit) * 17.0
    edge = boundary_scale(vit, pool.heldout, ray, eps)
    assert edge.reached
    assert torch.allclose(edge.noise, ray * edge.scale)
    assert edge.norm == pytest.approx(edge.noise.norm().item())
    assert edge.gap == pytest.approx(noise_gap(vit, pool.heldout, edge.noise), abs=1e-6)
    assert edge.gap < eps
    assert noise_gap(vit, pool.heldout, ray * edge.scale * 1.02) >= eps
    # nothing on the way there is outside
    assert all(noise_gap(vit, pool.heldout, ray * edge.scale * s) < eps for s in torch.linspace(0, 1, 21).tolist())


@pytest.mark.parametrize("share", [0.5, 0.99, 1.5, 40])
def test_a_march_that_begins_near_the_boundary_finds_it_sooner(vit, pool, share, monkeypatch):
    calls, inside = [], membership.inside
    monkeypatch.setattr(membership, "inside", lambda *args: calls.append(args) or inside(*args))
    edge = boundary_scale(vit, pool.heldout, direction(vit), 0.1)
    whole = len(calls)
    near = boundary_scale(vit, pool.heldout, direction(vit), 0.1, start=share * edge.scale)
    assert near.norm == pytest.approx(edge.norm, rel=0.02)
    assert near.reached
    assert len(calls) - whole < whole
    with pytest.raises(ValueError, match="start must be > 0, a scale of the direction, got 0"):
        boundary_scale(vit, pool.heldout, direction(vit), 0.1, start=0)


def test_boundary_does_not_depend_on_the_length_of_the_direction(vit, pool):
    norms = [boundary_scale(vit, pool.heldout, direction(vit) * s, 0.1).norm for s in (1e-3, 1.0, 1e3)]
    assert norms == pytest.approx([norms[0]] * 3, rel=0.02)


@pytest.mark.parametrize(("pool", "count", "images"), [(20, 1, 16), (16, 2, 16), (9, 2, 8), (9, 1, 9), (2, 2, 2)])
def test_images_of_a_step_by_hand(pool, count, images):
    assert step_images(CFG, pool, Share(count=count)) == images


def test_a_pool_that_leaves_a_process_without_an_image():
    with pytest.raises(ValueError, match="1 images to learn noise from cannot be shared by 2 processes: raise pool"):
        step_images(CFG, 1, Share(count=2))
    with pytest.raises(ValueError, match="a batch of 16 images cannot be shared equally by 3"):
        step_images(CFG, 20, Share(count=3))


def test_finer_precision_comes_closer(vit, pool):
    coarse, fine = (boundary_scale(vit, pool.heldout, direction(vit), 0.1, precision=p) for p in (0.1, 1e-3))
    assert coarse.gap <= fine.gap < 0.1
    assert fine.gap == pytest.approx(0.1, rel=0.02)


def test_a_ray_that_never_leaves(vit, pool):
    edge = boundary_scale(vit, pool.heldout, direction(vit), 2.0, limit=5.0)
    own = pool.heldout.tokens.flatten(1).norm(dim=1).square().mean().sqrt().item()
    assert not edge.reached
    assert own * 5 / 1.25 < edge.norm <= own * 5 * 1.0001
    assert edge.gap < 2


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_direction_that_leads_nowhere(vit, pool, value):
    with pytest.raises(ValueError, match="direction must be finite and not zero, got norm"):
        boundary_scale(vit, pool.heldout, torch.full((1, 4, 48), value), 0.1)


def test_random_noise_by_the_authors_rule(vit, pool):
    found = random_noise_at(vit, pool.heldout, 0.05, generator=generator(3))
    drawn = direction(vit, seed=3)
    assert torch.allclose(found.noise, drawn * found.scale)
    assert math.log(found.scale, 0.8) == pytest.approx(round(math.log(found.scale, 0.8)), abs=1e-6)
    assert found.reached
    assert found.gap < 0.05 <= noise_gap(vit, pool.heldout, drawn * (found.scale / 0.8))


def test_random_noise_that_is_inside_from_the_start(vit, pool):
    found = random_noise_at(vit, pool.heldout, 2.0, generator=generator(3))
    assert found.scale == 1
    assert not found.reached


def test_random_noise_at_the_boundary_is_up_to_a_quarter_longer(vit, pool):
    authors, boundary = (
        random_noise_at(vit, pool.heldout, 0.05, rule=rule, generator=generator(3)) for rule in ("authors", "boundary")
    )
    assert boundary.reached
    assert authors.norm * 0.99 <= boundary.norm <= authors.norm * 1.25
    cosine = torch.nn.functional.cosine_similarity(authors.noise.flatten(), boundary.noise.flatten(), dim=0)
    assert cosine.item() == pytest.approx(1)


@pytest.mark.parametrize("rule", ["authors", "boundary"])
def test_an_eps_below_the_rounding_is_no_eps(vit, pool, rule):
    """Else the control would be no noise at all."""
    wrong = replace(pool.heldout, logits=pool.heldout.logits + 1e-4 * torch.randn(len(pool.heldout), 10))
    with pytest.raises(ValueError, match=r"below the rounding of .* even no noise at all is outside"):
        random_noise_at(vit, wrong, 1e-12, rule=rule, generator=generator(3))


def test_unknown_rule(vit, pool):
    with pytest.raises(ValueError, match="rule must be one of authors, boundary, got 'paper'"):
        random_noise_at(vit, pool.heldout, 0.05, rule="paper", generator=generator(0))


def test_model_whose_logits_are_not_finite(vit):
    with torch.no_grad():
        vit.vit.head.bias[3] = math.nan
    with pytest.raises(ValueError, match="finite"):
        clean_pass(vit, random_images(vit, 2))


@pytest.mark.timeout(10)
@pytest.mark.parametrize("rule", ["authors", "boundary"])
def test_a_pool_that_is_not_finite_ends_the_search(vit, pool, rule):
    broken = CleanPass(pool.heldout.tokens, torch.full_like(pool.heldout.logits, math.nan))
    with pytest.raises(ValueError, match="finite"):
        random_noise_at(vit, broken, 0.05, rule=rule, generator=generator(0))


def test_the_learning_rate_falls_along_a_cosine(vit, pool, monkeypatch):
    rates, step = [], torch.optim.AdamW.step

    def noted(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    learn(vit, pool, replace(FIXED, steps=4))
    assert rates == pytest.approx([CFG.lr * (1 + math.cos(math.pi * s / 4)) / 2 for s in range(4)])


def test_weight_decay_pulls_the_noise_to_zero(vit, pool):
    """AdamW's: by lr times decay of the noise, beside the step along the gradient."""
    start = direction(vit)
    plain, pulled = (learn(vit, pool, replace(FIXED, steps=1, weight_decay=w), start=start).noise for w in (0.0, 0.5))
    assert torch.allclose(pulled - plain, -0.5 * FIXED.lr * start, atol=1e-6)


def test_a_noise_that_is_outside_is_told_by_all_heldout_images(vit):
    """More than one batch of them: its gap is no lower bound, as that of a test on the way may be."""
    pool = make_pool(vit, random_images(vit, 148), heldout=132)
    found = learn(vit, pool, replace(CFG, steps=1, eps=1e-6))
    assert not found.converged
    assert found.gap_heldout == pytest.approx(noise_gap(vit, pool.heldout, found.noise), rel=1e-4)
    assert found.match_heldout == pytest.approx(match_rate(vit, pool.heldout, found.noise))


def test_the_first_of_several_exits_counts(vit, pool, monkeypatch):
    """Outside from a tenth to a fifth of the tokens' own norm, and again from half of it on."""
    own = pool.heldout.tokens.flatten(1).norm(dim=1).square().mean().sqrt().item()

    def told(model, clean, noise, eps, **kwargs):
        share = noise.norm().item() / own
        return EpsTest(share < 0.1 or 0.2 <= share < 0.5, 0.0, len(clean), 1.0)

    monkeypatch.setattr(membership, "inside", told)
    for length in (1e-3, 1.0):
        edge = boundary_scale(vit, pool.heldout, direction(vit) * length, 0.1)
        assert edge.norm == pytest.approx(0.1 * own, rel=0.02)


def test_a_ray_is_followed_to_twenty_times_the_tokens_norm(vit, pool):
    edge = boundary_scale(vit, pool.heldout, direction(vit), 2.0)
    own = pool.heldout.tokens.flatten(1).norm(dim=1).square().mean().sqrt().item()
    assert not edge.reached
    assert own * 20 / 1.25 < edge.norm <= own * 20 * 1.0001
