"""What notebooks 01 to 03 rest on: controls of one norm, the sweep over lambda, tests on fresh images, reach."""

from dataclasses import replace

import pytest
import torch
from conftest import random_images

from nslib.analysis import linear
from nslib.analysis.controls import control_directions, mean_agreement, with_controls
from nslib.analysis.epsilon import eps_noises, reach_summary, reach_table, stopping_table
from nslib.analysis.synthesis import lambda_sweep
from nslib.config import NoiseConfig
from nslib.nullspace.encoder import learn_noise
from nslib.nullspace.membership import agreement, boundary_scale, clean_pass, match_rate, noise_gap
from nslib.nullspace.patch import PatchNullspace
from nslib.runtime import generator
from nslib.studies import ApproximateStudy, SynthesisStudy

NOISE = NoiseConfig(limit=1.0, lr=0.05, steps=60, batch=16)


@pytest.fixture
def clean(vit):
    """Thirty images that no noise is learned from or tested on."""
    return clean_pass(vit, random_images(vit, 30, seed=2))


def noise_of(vit, seed=0, size=3.0):
    return torch.randn(1, *vit.token_shape, generator=generator(seed)) * size


def test_controls_have_the_norm_of_the_noise(vit):
    noise = noise_of(vit)
    found = control_directions(noise, seed=4)
    assert list(found) == ["learned", "permuted", "random"]
    assert torch.equal(found["learned"], noise)
    assert torch.equal(found["permuted"].flatten().sort().values, noise.flatten().sort().values)
    for name in ("permuted", "random"):
        assert found[name].norm().item() == pytest.approx(noise.norm().item(), rel=1e-5)
        assert abs(torch.cosine_similarity(found[name].flatten(), noise.flatten(), dim=0)) < 0.3
        assert torch.equal(control_directions(noise, seed=4)[name], found[name])
        assert not torch.equal(control_directions(noise, seed=5)[name], found[name])


def test_controls_are_averaged_image_by_image(vit, clean):
    """Each noise with controls of its own."""
    noises = [noise_of(vit, 0, 0.3), noise_of(vit, 1, 0.5)]
    found = with_controls(vit, clean, noises, seed=7)
    for kind in ("learned", "permuted", "random"):
        each = [agreement(vit, clean, control_directions(v, seed=7 + i)[kind]) for i, v in enumerate(noises)]
        assert torch.allclose(found[kind].gap, (each[0].gap + each[1].gap) / 2)
        assert torch.equal(found[kind].match, (each[0].match.float() + each[1].match.float()) / 2)
    assert set(found["random"].match.tolist()) == {0, 0.5, 1}


def test_sweep_by_hand(vit, pool, clean):
    study = SynthesisStudy(lambdas=(0.0, 1.0), starts=2, noise=replace(NOISE, eps=None, steps=8))
    sweep = lambda_sweep(vit, pool, clean, study, seed=3)
    table = sweep.table.set_index(["regularization", "noise", "quantity"])
    assert list(sweep.damage) == [f"{vit.name}, λ = {s}" for s in (0, 1)] == list(sweep.estimates("learned", "gap"))
    for strength, damage in zip(study.lambdas, sweep.damage.values(), strict=True):
        cfg = replace(study.noise, regularization=strength)
        learned = [learn_noise(vit, pool, cfg, generator=generator(3 + i)).noise for i in range(2)]
        each = [control_directions(v, seed=3 + i) for i, v in enumerate(learned)]
        kinds = {kind: [directions[kind] for directions in each] for kind in each[0]}
        gaps = {}
        for kind, noises, images in [*((k, v, clean) for k, v in kinds.items()), ("pool", learned, pool.train[:30])]:
            gaps[kind] = sum(noise_gap(vit, images, v) for v in noises) / 2
            assert table.value[strength, kind, "gap"] == pytest.approx(gaps[kind], rel=1e-4)
            matches = sum(match_rate(vit, images, v) for v in noises) / 2
            assert table.value[strength, kind, "match"] == pytest.approx(matches)
        assert damage.value == pytest.approx(gaps["permuted"] - gaps["learned"], rel=1e-3)
        assert damage.value > 0
        norms = sweep.norms[sweep.norms.regularization == strength].norm.tolist()
        assert norms == pytest.approx([v.norm().item() for v in learned])
    assert (sweep.table.n == 30).all()
    assert (sweep.table.seeds == 2).all()
    assert [e.value for e in sweep.estimates("learned", "gap").values()] == table.value[:, "learned", "gap"].tolist()


def test_fresh_images_and_reach_by_hand(vit, pool, clean):
    study = ApproximateStudy(eps=(0.03, 0.1), starts=2, noise=NOISE)
    noises = eps_noises(vit, pool, study, seed=3)
    assert len(noises) == 2 * 2 * 2
    own = learn_noise(vit, pool, replace(NOISE, eps=0.1, stop_on="batch"), generator=generator(4))
    assert torch.equal(noises[0.1, "batch", 1].noise, own.noise)
    told = stopping_table(vit, clean, noises).set_index(["eps", "stop_on", "start"])
    for place, found in noises.items():
        row = told.loc[place]
        assert row.value == pytest.approx(noise_gap(vit, clean, found.noise), rel=1e-4)
        assert row.match == pytest.approx(match_rate(vit, clean, found.noise))
        assert (row.n, row.gap_heldout, row.steps) == (30, found.gap_heldout, found.steps)
    table = reach_table(vit, clean, noises, seed=3)
    assert len(table) == 2 * 2 * 3  # of those stopped on held-out images
    for row in table.itertuples():
        direction = control_directions(noises[row.eps, "heldout", row.start].noise, seed=3 + row.start)[row.noise]
        edge = boundary_scale(vit, clean, direction, row.eps)
        assert (row.norm, row.gap, row.reached) == (edge.norm, edge.gap, edge.reached)
    summary = reach_summary(table).set_index(["eps", "noise"])
    both = table[(table.eps == 0.1) & (table.noise == "random")].norm
    assert summary.loc[(0.1, "random")].tolist() == pytest.approx([both.mean(), both.min(), both.max()])


def test_noise_of_the_complement_is_as_long(vit, monkeypatch):
    """Image by image; the nullspace noise alone has the peak asked for, and only it changes no logit."""
    null, images, seen = PatchNullspace(vit), random_images(vit, 5), []
    logits = linear.batched_logits
    monkeypatch.setattr(linear, "batched_logits", lambda model, x, batch: seen.append(x.double()) or logits(model, x))
    table = linear.amplitude_sweep(vit, null, images, (0.1, 0.5), generator=generator(0))
    clean, *noisy = seen[5:]  # of 64 bits
    changes = [(x - clean).flatten(1) for x in noisy]
    for peak, hidden, other in zip((0.1, 0.5), changes[::2], changes[1::2], strict=True):
        assert torch.allclose(hidden.abs().amax(1), torch.full((5,), peak).double())
        assert torch.allclose(hidden.norm(dim=1), other.norm(dim=1))
    value = table.set_index(["bits", "noise", "peak"]).value
    assert value[64, "nullspace", 0.5] < 1e-4 < 1e-2 < value[64, "complement", 0.1]
    assert linear.token_change(vit, images, changes[2].reshape(images.shape)) < 1e-5
    assert linear.token_change(vit, images, changes[3].reshape(images.shape)) > 1e-2


def test_mean_over_noises_by_hand(vit, clean):
    found = agreement(vit, clean, noise_of(vit, size=0.5))
    both = mean_agreement([found, found])
    assert torch.equal(both.gap, found.gap)
    assert torch.equal(both.match, found.match.float())
