"""Closure of the eps set: combinations by hand, batches against one noise at a time, and what is refused."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import ROOT

from nslib.analysis import closure, mixtures
from nslib.config import NoiseConfig
from nslib.nullspace.membership import CleanPass, agreement, noise_gap, permute
from nslib.runtime import generator
from nslib.studies import ClosureStudy

EPS = 0.03
STUDY = ClosureStudy(
    noises=3,
    noise=NoiseConfig(limit=1.0, lr=0.05, steps=60, batch=16, eps=EPS),
    convex=(3, 50),
    spans=(1, 2, 3, 50),
    draws=12,
)


@pytest.fixture
def clean(pool):
    return pool.heldout


def gaussian(vit, count, seed=0, size=1.0):
    return torch.randn(count, *vit.token_shape, generator=generator(seed)) * size


# Batches and combinations


@pytest.mark.parametrize("chunk", [1, 5, 24, 50, 4096])
def test_gaps_are_those_of_each_noise_alone(vit, clean, chunk):
    noises = gaussian(vit, 5)
    found = closure.gap_matrix(vit, clean, noises, chunk=chunk)
    assert found.shape == (5, 24)
    for row, noise in zip(found, noises, strict=True):
        assert torch.allclose(row, agreement(vit, clean, noise.unsqueeze(0)).gap, atol=1e-5)
    assert found.max() > 0.1  # the test can tell


def test_a_noise_that_recurs_is_looked_at_once(vit, clean, monkeypatch):
    """Pairs with weights 0 and 1 are single noises: of these four, three."""
    asked = []
    forward = vit.logits_from_tokens
    monkeypatch.setattr(vit, "logits_from_tokens", lambda tokens: asked.append(len(tokens)) or forward(tokens))
    noises, pairs = {"learned": gaussian(vit, 3)}, {"learned": torch.tensor([[0, 2], [1, 0], [2, 1], [0, 1]])}
    line = closure.line_table(vit, clean, noises, pairs, [0, 0.5], EPS).set_index("alpha")
    assert sum(asked) == (3 + 4) * len(clean)
    assert line.pairs.tolist() == [4, 4]
    gaps = closure.gap_matrix(vit, clean, noises["learned"][[2, 0, 1, 1]])
    assert line.value[0] == pytest.approx(gaps.mean().item())
    assert line.outside[0] == (gaps.mean(1) >= EPS).float().mean()
    assert line.norm[0] == pytest.approx(noises["learned"][[2, 0, 1, 1]].flatten(1).norm(dim=1).mean().item())


def test_combinations_by_hand():
    noises = torch.tensor([[[1.0, 2.0]], [[10.0, 20.0]]])  # two of (N, D) = (1, 2)
    weights = torch.tensor([[1.0, 1.0], [0.5, -1.0], [0.0, 0.0]])
    assert closure.combine(noises, weights).tolist() == [[[11, 22]], [[-9.5, -19]], [[0, 0]]]
    pairs = torch.stack([noises, noises.flip(0)])
    assert closure.combine(pairs, torch.tensor([[1.0, 0.0]]))[:, 0].tolist() == [[[1, 2]], [[10, 20]]]


def test_ticks_hit_zero_and_one_exactly():
    ticks = closure.ticks(1.5, 0.1)
    assert len(ticks) == 31
    assert {-1.5, -1.0, 0.0, 0.3, 1.0, 1.5} <= set(ticks)
    with pytest.raises(ValueError, match=r"step must divide 1.5, got 0.4: take one such as 0.1"):
        closure.ticks(1.5, 0.4)


def test_pairs_are_different_and_of_different_noises():
    pairs = closure.draw_pairs(5, 10, generator=generator(0))
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert len({tuple(sorted(p)) for p in pairs.tolist()}) == 10
    assert not (pairs[:, 0] < pairs[:, 1]).all()  # either may come first
    with pytest.raises(ValueError, match="5 noises have 10 pairs, asked for 11"):
        closure.draw_pairs(5, 11, generator=generator(0))


def test_measures_by_hand(vit, clean, monkeypatch):
    gaps = torch.tensor([[0.0, 0.02], [0.02, 0.04], [0.1, 0.3]])
    monkeypatch.setattr(closure, "gap_matrix", lambda *_: gaps)
    noises = torch.zeros(3, 1, 2)
    noises[:2, 0] = torch.tensor([3.0, 4.0])
    found = closure.measure(vit, clean[:2], noises, EPS)
    assert found["norm"] == pytest.approx(10 / 3)  # of norms 5, 5 and 0
    assert found["value"] == pytest.approx(0.08)
    assert found["outside"] == pytest.approx(2 / 3)  # a noise at eps is outside
    assert (found["n"], found["seeds"]) == (2, 1)  # three noises of one model
    assert 0.01 < found["band_low"] < 0.02 < 0.17 < found["band_high"] < 0.2
    assert found["low"] <= found["value"] <= found["high"]


def test_images_shown_are_as_hard_as_those_judged(clean):
    gaps = torch.arange(24.0).flip(0) ** 2  # the last image is the easiest
    for images, expected in ((4, [2, 8, 14, 20]), (1, [11]), (24, list(range(24))), (99, list(range(24)))):
        found = closure.typical(clean, gaps, images)
        assert torch.equal(found.tokens, clean.tokens[expected])
        assert torch.equal(found.logits, clean.logits[expected])
    mixed, numbers = torch.rand(24, generator=torch.Generator().manual_seed(0)), torch.arange(24)
    kept = closure.typical(CleanPass(numbers, numbers), mixed, 8).tokens
    assert kept.tolist() == sorted(kept.tolist())  # so that neighbours are not alike
    assert mixed[kept].mean().item() == pytest.approx(mixed.mean().item(), abs=0.03)


def test_the_notebook_shows_typical_images():
    source = (ROOT / "paper_nb" / "04_closure.py").read_text(encoding="utf-8")
    assert "clean = closure.typical(judged, " in source


# The tables


def test_scales(vit, clean):
    noises = {"learned": gaussian(vit, 3), "permuted": gaussian(vit, 3, seed=1)}
    table = closure.scale_table(vit, clean, noises, [-1, 0, 0.01, 1], EPS).set_index(["noise", "scale"])
    for kind, own in noises.items():
        for scale in (-1, 0.01, 1):
            gaps = [noise_gap(vit, clean, scale * v.unsqueeze(0)) for v in own]
            row = table.loc[(kind, scale)]
            assert row.value == pytest.approx(sum(gaps) / 3, abs=1e-5)
            assert row.outside == pytest.approx(sum(g >= EPS for g in gaps) / 3)
        assert table.value[kind, 0] < 1e-9
    assert table.outside["learned", 1] == 1 > table.outside["learned", 0.01]
    assert table.norm["learned", -1] == pytest.approx(noises["learned"].flatten(1).norm(dim=1).mean().item())
    assert table.norm["learned", 0.01] == pytest.approx(table.norm["learned", 1] / 100)


def test_grid_and_line_have_the_noises_themselves_at_their_ends(vit, clean):
    noises = {"learned": gaussian(vit, 3, size=0.5)}
    own = [v.unsqueeze(0) for v in noises["learned"]]
    pairs = {"learned": torch.tensor([[0, 2], [1, 0]])}
    table = closure.grid_table(vit, clean, noises, pairs, closure.ticks(1, 0.5), EPS, images=24)
    assert set(table.n) == {24}
    grid = table.set_index(["alpha", "beta"])
    assert len(grid) == 25
    ends = {(1, 0): (own[0], own[1]), (0, 1): (own[2], own[0]), (-0.5, 1): (own[2] - own[0] / 2, own[0] - own[1] / 2)}
    for place, mixed in ends.items():
        gaps = [noise_gap(vit, clean, v) for v in mixed]
        assert grid.value[place] == pytest.approx(sum(gaps) / 2, abs=1e-5)
        assert grid.outside[place] == sum(gap >= EPS for gap in gaps) / 2
    assert grid.value[0, 0] < 1e-9

    line = closure.line_table(vit, clean, noises, pairs, [0, 0.25, 1], EPS).set_index("alpha")
    assert line.value[1] == pytest.approx(grid.value[1, 0], abs=1e-6)
    assert line.value[0] == pytest.approx(grid.value[0, 1], abs=1e-6)
    quarter = [own[0] / 4 + own[2] * 3 / 4, own[1] / 4 + own[0] * 3 / 4]
    assert line.value[0.25] == pytest.approx(sum(noise_gap(vit, clean, v) for v in quarter) / 2, abs=1e-5)
    assert line.norm[0.25] == pytest.approx(sum(v.norm().item() for v in quarter) / 2)
    assert (set(line.pairs), set(line.n), set(line.seeds)) == ({2}, {24}, {1})


def test_share_of_pairs_is_decided_on_all_images(vit, clean):
    """Each kind with its own pairs; a node where one pair is inside and the other is not."""
    noises = {"learned": gaussian(vit, 3) * torch.tensor([0.01, 0.01, 1]).reshape(-1, 1, 1)}
    noises["permuted"] = noises["learned"] * 2
    pairs = {"learned": torch.tensor([[0, 1], [0, 2]]), "permuted": torch.tensor([[2, 1]])}
    table = closure.share_table(vit, clean, noises, pairs, closure.ticks(1, 0.5), EPS)
    assert (len(table), set(table.n)) == (50, {24})
    assert table.groupby("noise").pairs.unique().to_dict() == {"learned": [2], "permuted": [1]}
    for row in table.itertuples():
        mixed = [row.alpha * noises[row.noise][a] + row.beta * noises[row.noise][b] for a, b in pairs[row.noise]]
        outside = [noise_gap(vit, clean, v.unsqueeze(0)) >= EPS for v in mixed]
        assert row.outside == sum(outside) / len(outside)
    assert set(table.outside) == {0, 0.5, 1}


def test_pairs_of_the_grid_take_turns_with_the_images(vit, clean):
    """Three pairs on ten images each of 24: the last one comes round to the first six."""
    noises = {"learned": gaussian(vit, 3, size=0.5), "permuted": gaussian(vit, 3, seed=1)}
    pairs = torch.tensor([[0, 2], [1, 0], [2, 1]])
    grid = closure.grid_table(vit, clean, noises, {"learned": pairs, "permuted": pairs[:1]}, [1.0], EPS, images=10)
    turns = [list(range(10)), list(range(10, 20)), [20, 21, 22, 23, 0, 1, 2, 3, 4, 5]]
    gaps = [
        noise_gap(vit, clean[turn], noises["learned"][pair].sum(0, keepdim=True))
        for turn, pair in zip(turns, pairs, strict=True)
    ]
    learned, permuted = (grid[grid.noise == kind].iloc[0] for kind in noises)
    assert learned.value == pytest.approx(sum(gaps) / 3, abs=1e-5)
    assert len({round(g, 4) for g in gaps}) == 3
    between = sum(gaps) / 3  # the smallest is below it, the largest is not
    ours = {"learned": noises["learned"]}
    cut = closure.grid_table(vit, clean, ours, {"learned": pairs}, [1.0], between, images=10).outside.item()
    assert cut == pytest.approx(sum(gap >= between for gap in gaps) / 3)
    assert (learned.pairs, learned.n, permuted.pairs, permuted.n) == (3, 24, 1, 10)
    assert permuted.value == pytest.approx(
        noise_gap(vit, clean[:10], noises["permuted"][[0, 2]].sum(0, keepdim=True)), abs=1e-5
    )
    for images in (0, 25):
        with pytest.raises(ValueError, match=rf"images must be in 1\.\.24, the clean ones, got {images}"):
            closure.grid_table(vit, clean, noises, {"learned": pairs}, [1.0], EPS, images=images)


def test_inside_is_decided_early_and_as_over_all_images(vit, clean, monkeypatch):
    noises = torch.cat([gaussian(vit, 4, seed=i, size=size) for i, size in enumerate((0.01, 0.1, 0.2, 0.3, 1.0))])
    expected = [noise_gap(vit, clean, v.unsqueeze(0)) < EPS for v in noises]
    assert 0 < sum(expected) < 20
    asked = []
    whole = closure.gap_matrix
    monkeypatch.setattr(closure, "gap_matrix", lambda *args: asked.append(args[2]) or whole(*args))
    assert closure.inside_each(vit, clean, noises, EPS).tolist() == expected
    assert [len(v) for v in asked[:1]] == [20]
    assert sum(expected) <= len(asked[-1]) < 20  # those far outside are out of it by then


def test_convex_combinations_of_one_noise_are_that_noise(vit, clean):
    """Three times the same: any weights that add up to one give it back, and the sum is twice it."""
    noise = gaussian(vit, 1, size=0.5)
    pairs = closure.draw_pairs(3, 3, generator=generator(0))
    table = mixtures.further_table(vit, clean, {"learned": noise.repeat(3, 1, 1)}, pairs, STUDY, seed=0)
    value = table.set_index("combination").value
    assert list(value.index) == ["sum of 2", "convex of 3"]  # not of 50: there are three noises
    assert value["convex of 3"] == pytest.approx(noise_gap(vit, clean, noise), abs=1e-5)
    assert value["sum of 2"] == pytest.approx(noise_gap(vit, clean, 2 * noise), abs=1e-5)


def test_convex_weights_are_convex(vit, clean, monkeypatch):
    """Seen through noises that are unit vectors: a combination's entries are its weights."""
    noises = torch.zeros(3, *vit.token_shape)
    noises[range(3), 0, range(3)] = 1
    seen = []
    monkeypatch.setattr(closure, "gap_matrix", lambda _, __, mixed: seen.append(mixed[:, 0, :3]) or torch.zeros(2, 2))
    outside = torch.zeros(STUDY.draws, dtype=torch.bool)
    monkeypatch.setattr(mixtures, "inside_each", lambda _, __, mixed, ___: seen.append(mixed[:, 0, :3]) or outside)
    pairs = torch.tensor([[0, 1], [2, 1]])
    mixtures.further_table(vit, clean, {"learned": noises}, pairs, STUDY, seed=0)
    assert seen[0].tolist() == [[1, 1, 0], [0, 1, 1]]
    assert seen[1].min() > 0
    assert torch.allclose(seen[1].sum(1), torch.ones(2))
    assert len(seen[1].unique()) == 6

    mixtures.span_table(vit, clean, {"learned": noises * torch.tensor([1, 2, 7]).reshape(-1, 1, 1)}, STUDY, seed=0)
    for mixed, (sign, k) in zip(
        seen[2:], [(s, k) for s in ("either sign", "positive") for k in (1, 2, 3)], strict=True
    ):
        assert len(mixed) == STUDY.draws
        assert torch.allclose(mixed.norm(dim=1), torch.tensor(2.0))  # the median norm
        assert set((mixed != 0).sum(1).tolist()) == {k}
        assert mixed.max() > 0
        assert (mixed.min() < 0) == (sign == "either sign")


def test_span_shares(vit, clean):
    noises = gaussian(vit, 4, size=0.01)
    kinds = {
        "learned": noises,
        "permuted": torch.cat([permute(v.unsqueeze(0), generator=generator(1)) for v in noises]),
    }
    inside = mixtures.span_table(vit, clean, kinds, STUDY, seed=0)
    assert inside.value.tolist() == [1] * 12
    assert inside.k.tolist() == [1, 2, 3] * 4
    assert inside.norm.nunique() == 1
    outside = mixtures.span_table(vit, clean, {"learned": noises * 100}, STUDY, seed=0)
    assert outside.value.tolist() == [0] * 6
    assert outside.high.max() < 0.4


def test_largest_span():
    table = pd.DataFrame({"k": [1, 2, 4], "value": [1, 0.95, 0.9]})
    assert mixtures.largest_span(table) == 2
    assert mixtures.largest_span(table, share=0.99) == 1
    assert mixtures.largest_span(table.assign(value=0.5)) == 0
    assert mixtures.largest_span(table.assign(value=[1, 0.925, 1])) == 1  # it fails at 2, whatever comes after


# Learning the noises


def test_noises_are_learned_inside_and_permuted(vit, pool):
    found = closure.closure_noises(vit, pool, STUDY, seed=0)
    assert [v.shape for v in found.values()] == [(3, 4, 48)] * 2
    for learned, permuted in zip(found["learned"], found["permuted"], strict=True):
        assert noise_gap(vit, pool.heldout, learned.unsqueeze(0)) < EPS
        assert torch.equal(learned.flatten().sort().values, permuted.flatten().sort().values)
        assert not torch.equal(learned, permuted)
    assert len({v.norm().item() for v in found["learned"]}) == 3


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("noises", 2),
        *((n, 1) for n in ("judged_images", "images", "grid_images", "pairs", "control_pairs", "draws")),
    ],
)
def test_too_few_of_anything(name, least):
    assert getattr(replace(STUDY, **{name: least}), name) == least
    with pytest.raises(ValueError, match=f"{name} must be >= {least}, got {least - 1}"):
        replace(STUDY, **{name: least - 1})


def test_mistakes(vit, pool, clean):
    without = replace(STUDY, noise=replace(STUDY.noise, eps=None))
    with pytest.raises(ValueError, match=r"closure\.noise\.eps must be a number"):
        closure.closure_noises(vit, pool, without, seed=0)
    hurried = replace(STUDY, noise=replace(STUDY.noise, steps=1))
    too_few = r"0 of 3 noises got inside eps = 0.03, closure needs two \(the next one's gap is 0\.\d+\): raise closure"
    with pytest.raises(ValueError, match=too_few):
        closure.closure_noises(vit, pool, hurried, seed=0)
    with pytest.raises(ValueError, match=r"noise must be \(1, 4, 48\)"):
        closure.gap_matrix(vit, clean, torch.zeros(2, 5, 48))
    with pytest.raises(ValueError, match="clean pass is empty"):
        closure.gap_matrix(vit, clean[:0], gaussian(vit, 1))
    with pytest.raises(ValueError, match="in training mode"):
        closure.gap_matrix(vit.train(), clean, gaussian(vit, 1))


def test_convex_weights_are_uniform_on_the_simplex(vit, clean, monkeypatch):
    """So each of three is above a half in a quarter of the draws."""
    noises, seen = torch.zeros(3, *vit.token_shape), []
    noises[range(3), 0, range(3)] = 1
    monkeypatch.setattr(mixtures, "measure", lambda _, __, mixed, ___: seen.append(mixed[:, 0, :3]) or {})
    pairs = torch.tensor([[0, 1]]).repeat(4000, 1)
    mixtures.further_table(vit, clean, {"learned": noises}, pairs, STUDY, seed=0)
    assert (seen[1] > 0.5).float().mean(0).tolist() == pytest.approx([0.25] * 3, abs=0.03)
