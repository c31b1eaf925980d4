"""The finetuned rows of the notebooks: each model trained once, measured on the same images."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_vit
from test_tables import evaluation

from nslib.config import DataConfig, FinetuneConfig, NoiseConfig, SuiteConfig
from nslib.data.shapes import Batch
from nslib.data.source import open_source
from nslib.evaluate.bench import Bench
from nslib.finetune.noises import NoiseFacts
from nslib.finetune.result import over_seeds
from nslib.finetune.state import Round
from nslib.machine.makers import only_maker
from nslib.machine.processes import ALONE
from nslib.runtime import generator
from nslib.settings import Settings
from nslib.studies import ApproximateStudy, FinetuningStudy
from nslib.study import jobs, tables, trials
from nslib.study.kept import kept
from nslib.study.traces import influence, influenced, traced
from nslib.vit.staged import renormalised

TINY = Settings(
    pool=12,
    heldout=8,
    approximate=ApproximateStudy(reach_images=8),
    finetune=FinetuneConfig(
        rounds=2,
        steps=2,
        batch=4,
        lr=1e-3,
        lr_min=1e-4,
        pool=12,
        heldout=8,
        noise=NoiseConfig(eps=0.5, batch=4, steps=200),
    ),
    finetuning=FinetuningStudy(columns=("clean", "fgsm", "a"), images=6, trace_images=4, fresh=1),
    suite=SuiteConfig(batch=4),
)


@pytest.fixture
def bench(vit):
    return Bench(vit, open_source(DataConfig(), vit), TINY.suite)


@pytest.fixture
def trainings(monkeypatch):
    """Objectives trained, not read from the store."""
    done = []
    train = jobs.finetune_model

    def noted(model, source, cfg, *, target, **kwargs):
        if not target.is_file():
            done.append((cfg.objective, cfg.seed))
        return train(model, source, cfg, target=target, **kwargs)

    monkeypatch.setattr(jobs, "finetune_model", noted)
    return done


def test_each_model_is_trained_once(bench, trainings):
    first = trials.row(bench, TINY, "plain")
    assert trainings == [("plain", 0)]
    again = trials.row(bench, TINY, "plain")
    assert trainings == [("plain", 0)]
    assert again.hits["clean"][""].tolist() == first.hits["clean"][""].tolist()
    trials.row(bench, replace(TINY, suite=replace(TINY.suite, batch=2)), "plain")  # as after a want of memory
    assert trainings == [("plain", 0)]
    trials.row(bench, TINY, "plain", trainable="pos_embed")
    other = make_vit(seed=1)
    trials.row(bench.of(other), TINY, "plain")
    assert len(trainings) == 3


def test_rows_begin_with_the_base_and_leave_out_what_the_study_does(bench, trainings):
    settings = replace(TINY, finetuning=replace(TINY.finetuning, objectives=("plain", "nullspace")))
    found = trials.rows(bench, settings, ("plain", "sam"))
    assert list(found) == ["base", "plain"]
    table = tables.rows_table(found)
    assert table.model.tolist() == ["base", "plain"]
    assert table["mean"][0] == pytest.approx(table.loc[0, ["clean", "fgsm", "a"]].mean())
    assert table.seeds.tolist() == [1, 1]


WANTED = [("plain", 0), ("plain", 1), ("random", 0)]


def test_models_that_another_process_is_making_come_last(bench):
    with only_maker(jobs._target(bench, TINY, jobs.config_of(TINY, "plain")), ALONE):
        turns = jobs.in_turn(bench, TINY, WANTED)
        assert [next(turns), next(turns)] == WANTED[1:]
    assert list(turns) == WANTED[:1]


def test_models_that_another_process_is_measuring_come_last(bench, tmp_path, monkeypatch):
    monkeypatch.setenv("NSLIB_FIGURES", str(tmp_path))
    settings = replace(TINY, finetuning=replace(TINY.finetuning, keep=True))
    order = []

    def compute():  # as the other process does, under the lock of what it keeps
        order.extend(jobs.in_turn(bench, settings, WANTED))
        return {}

    kept(jobs._file(bench, settings, jobs.config_of(settings, "plain")), {}, compute)
    assert order == [*WANTED[1:], WANTED[0]]


def test_rows_stand_as_asked_in_whatever_order_they_are_made(bench, trainings, monkeypatch):
    monkeypatch.setattr(trials, "in_turn", lambda bench, settings, wanted: reversed(wanted))
    settings = replace(TINY, finetuning=replace(TINY.finetuning, seeds=2, seeded=("plain",)))
    found = trials.rows(bench, settings, ("plain", "random"))
    assert trainings == [("random", 0), ("plain", 1), ("plain", 0)]
    assert [(name, row.seeds) for name, row in found.items()] == [("base", 1), ("plain", 2), ("random", 1)]
    each = trials.seed_rows(bench, settings, "plain")
    assert found["plain"].hits["clean"][""].tolist() == [e.hits["clean"][""].tolist() for e in each]
    assert len(trainings) == 3


def test_seeds_are_pooled_image_by_image(bench, trainings):
    settings = replace(TINY, finetuning=replace(TINY.finetuning, seeds=2))
    pooled = trials.row(bench, settings, "plain")
    each = trials.seed_rows(bench, settings, "plain")
    assert trainings == [("plain", 0), ("plain", 1)]
    assert pooled.hits["clean"][""].tolist() == [e.hits["clean"][""].tolist() for e in each]
    assert (pooled.seeds, pooled.estimate("clean").seeds, each[0].seeds) == (2, 2, 1)
    assert pooled.estimate("clean").value == pytest.approx(np.mean([e.estimate("clean").value for e in each]))
    alone = replace(settings, finetuning=replace(settings.finetuning, seeded=()))
    assert len(trials.seed_rows(bench, alone, "plain")) == 1


def test_rounds_of_every_seed(bench, trainings):
    settings = replace(TINY, finetuning=replace(TINY.finetuning, seeds=2))
    found = trials.seed_rounds(bench, settings, "nullspace")
    assert found[["seed", "round"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert found.norm.nunique() == 4
    shown = over_seeds(found.assign(objective="nullspace"), "norm")
    assert shown.columns.tolist() == ["objective", "round", "value", "low", "high"]
    of_first = found.norm[found["round"] == 0]
    assert shown.iloc[0, 2:].tolist() == pytest.approx([of_first.mean(), of_first.min(), of_first.max()])
    assert over_seeds(found.assign(objective="plain", norm=float("nan")), "norm").empty
    assert trainings == [("nullspace", 0), ("nullspace", 1)]


def test_rows_say_in_how_many_rounds_the_noise_missed_eps(bench):
    """Three noise steps do not get there; rows without noise, and tables without noisy rows, have nothing to say."""
    noise = replace(TINY.finetune.noise, eps=1e-6, steps=3)
    short = replace(TINY, finetune=replace(TINY.finetune, noise=noise), finetuning=replace(TINY.finetuning, seeds=2))
    with pytest.warns(UserWarning, match="did not reach eps"):
        found = {name: trials.row(bench, short, name) for name in ("base", "plain", "nullspace")}
    assert tables.missed_eps(found) == {"nullspace": 4}
    assert tables.rows_table(found).missed_eps.tolist() == ["", "", "4 of 4 rounds"]
    assert tables.missed_eps({"nullspace": trials.row(bench, TINY, "nullspace")}) == {"nullspace": 0}
    assert "missed_eps" not in tables.rows_table({"plain": found["plain"]})


def test_traced_rounds_are_measured_on_every_column(bench):
    history = jobs.finetuned(bench, TINY, "plain").history
    assert [set(r.measured) for r in history] == [{"clean", "adversarial", "shifted"}] * 2
    assert set(traced(bench, TINY, bench.model)) == {"clean", "adversarial", "shifted"}
    assert jobs.finetuned(bench, TINY, "sam").history[0].measured == {}


def test_the_last_round_measures_the_model_delivered(bench):
    run = jobs.finetuned(bench, TINY, "plain")
    after = traced(bench, TINY, run.model)
    assert run.history[-1].measured == pytest.approx(after)


def test_influence_by_hand(vit):
    """The mean over noises of what each does, image by image; its error is that of the images."""
    images, labels = torch.rand(5, *vit.image_shape, generator=generator(0)), torch.tensor([3, 0, 1, 2, 5])
    noises = torch.randn(2, 4, 48, generator=generator(1))
    found = influence(vit, Batch(images, labels), noises, batch=2)
    with torch.no_grad():
        tokens = vit.embed(images)
        before = vit.logits_from_tokens(tokens)
        after = [vit.logits_from_tokens(tokens + noise) for noise in noises]
    each = torch.stack([(z.softmax(1) - before.softmax(1)).square().sum(1) for z in after])
    gaps = each.mean(0)
    same = sum((z.argmax(1) == before.argmax(1)).float().mean().item() for z in after) / 2
    error = gaps.numpy().std(ddof=1) / 5**0.5
    assert found == pytest.approx({"gap": gaps.mean().item(), "gap_error": error, "match": same, "n": 5}, abs=1e-6)
    assert influence(vit, Batch(images[:1], labels[:1]), noises)["gap_error"] == 0
    grouped = influence(vit, Batch(images, labels), noises, groups=2, batch=2)
    assert grouped["gap"] == pytest.approx(each[[1, 0, 1, 0, 1], range(5)].mean().item(), abs=1e-6)


def test_influences_are_of_each_round_and_seed_on_images_of_val(bench, trainings):
    settings = replace(TINY, finetuning=replace(TINY.finetuning, seeds=2))
    table = trials.influences(bench, settings, trials.of_influences(settings))
    assert trainings == [("nullspace", 0), ("nullspace", 1)]
    assert table[["objective", "seed", "round"]].values.tolist() == [
        ["nullspace", s, r] for s in (0, 1) for r in (0, 1)
    ]
    for seed, own in table.groupby("seed"):
        history = jobs.finetuned(bench, settings, "nullspace", seed=seed).history
        assert own.gap_heldout.tolist() == pytest.approx([r.noises[0].gap_heldout for r in history], rel=1e-5)
        assert own.gap.tolist() == pytest.approx([r.influence["gap"] for r in history], rel=1e-5)
    assert (table.n == 6).all()
    assert ((table.low <= table.gap) & (table.gap <= table.high)).all()
    assert len(trainings) == 2
    by_batch = replace(settings.finetuning, objectives=("plain", "nullspace", "nullspace_by_batch"))
    assert trials.of_influences(replace(settings, finetuning=by_batch)) == ["nullspace", "nullspace_by_batch"]


def test_images_of_influence_are_those_that_are_reported_and_not_too_many(bench):
    """Beyond 1,000 they would fill the memory; a search that looks further on in val looks at none of them."""
    taken = []

    def take(split, n, *, start):
        taken.append((split, start, n))
        return Batch(torch.zeros(n, *bench.model.image_shape), torch.zeros(n, dtype=torch.int64))

    noted = SimpleNamespace(source=SimpleNamespace(count=lambda split: 1500, take=take), model=bench.model)
    for images, first in ((6, 0), (4000, 0), (4000, 1200)):
        study, suite = replace(TINY.finetuning, images=images), replace(TINY.suite, first=first)
        influenced(noted, replace(TINY, finetuning=study, suite=suite))
    assert taken == [("val", 0, 6), ("val", 0, 1000), ("val", 1200, 300)]
    with pytest.raises(ValueError, match=r"suite\.first must be below 1500, the images of val, got 1500"):
        influenced(noted, replace(TINY, suite=replace(TINY.suite, first=1500)))


def test_influence_is_of_what_is_asked_for_alone(bench, trainings):
    """Other runs do not depend on these images, and are not made again for them."""
    grouped = replace(TINY, finetune=replace(TINY.finetune, groups=2, pool=40, heldout=30))
    assert (trials.influences(bench, grouped, ["nullspace"]).n == 6).all()
    for objective, changes in (("nullspace", {"noises": 2}), ("random", {})):
        assert [r.influence for r in jobs.finetuned(bench, TINY, objective, **changes).history] == [{}, {}]
    done = len(trainings)
    more = replace(TINY, finetuning=replace(TINY.finetuning, images=5))
    jobs.finetuned(bench, more, "random")
    assert len(trainings) == done
    jobs.finetuned(bench, TINY, "nullspace")
    jobs.finetuned(bench, more, "nullspace")
    assert len(trainings) == done + 2


def test_eps_sets_are_measured_along_fresh_directions(bench):
    table = trials.eps_sets(bench, TINY, {"plain": {}, "plain, fast": {"lr": 1e-2}}, eps=0.03)
    assert set(table.model) == {"base", "plain", "plain, fast"}
    reached = table.set_index(["model", "noise", "start"]).norm
    assert (reached["plain"] != reached["plain, fast"]).any()  # of the model that was finetuned so
    assert {"learned", "permuted", "random"} <= set(table.noise)
    assert table.norm.gt(0).all()
    assert set(table.block) == {0}


def test_eps_sets_on_further_images(bench, monkeypatch):
    """The first block is what one alone would be; the next has the learned noises on the images that follow."""
    shown, take = [], bench.source.take
    monkeypatch.setattr(bench.source, "take", lambda *a, **k: shown.append((a, k)) or take(*a, **k))
    one = trials.eps_sets(bench, TINY, {}, eps=0.03)
    two = trials.eps_sets(bench, TINY, {}, eps=0.03, blocks=2)
    assert two[two.block == 0].equals(one)
    further = two[two.block == 1]
    assert set(further.noise) == {"learned"}
    assert len(further) == TINY.finetuning.fresh
    assert (further.norm.to_numpy() != one[one.noise == "learned"].norm.to_numpy()).all()
    assert [k["start"] for a, k in shown if a == ("val", 8)] == [0, 0, 8]


def test_fixed_steps_run_only_where_the_study_asks(bench):
    assert trials.fixed_against_early(bench, TINY) == []
    settings = replace(TINY, finetuning=replace(TINY.finetuning, fixed_steps=2))
    (found,) = trials.fixed_against_early(bench, settings)
    assert 0 <= found.low <= found.value <= found.high


def test_wide_rows_are_those_of_one_seed_and_what_they_are_compared_with(monkeypatch):
    study = replace(TINY.finetuning, objectives=("nullspace", "plain", "random", "sam", "madry"), seeds=3)
    settings, counted = replace(TINY, finetuning=replace(study, wide_images=8)), []

    def narrow(bench, settings, objective, *, seeds):
        counted.append(seeds)
        return evaluation(objective, clean=[1, 0], cw=[1])

    monkeypatch.setattr(trials, "row", narrow)
    monkeypatch.setattr(trials, "wide_row", lambda bench, settings, name: evaluation(name, clean=[1, 0, 1, 1]))
    asked = ("base", "plain", "random", "nullspace", "sam")
    found = trials.wide_rows(None, settings, asked)
    assert list(found) == ["nullspace", "plain", "sam"]
    assert counted == [1, 1, 1]
    assert {c: h[""].size for c, h in found["sam"].hits.items()} == {"clean": 4, "cw": 1}
    assert trials.wide_rows(None, replace(TINY, finetuning=study), asked) == {}


def test_renormalised_is_a_copy_with_other_statistics(vit):
    images = torch.rand(3, *vit.image_shape)
    other = renormalised(vit, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    shifted = (images - other.mean) / other.std * vit.std + vit.mean
    with torch.no_grad():
        assert torch.allclose(other(images), vit(shifted), atol=1e-5)
        other.vit.head.weight.zero_()
    assert vit.vit.head.weight.abs().sum() > 0
    with pytest.raises(ValueError, match=r"a number in .* for each of 3 channels"):
        renormalised(vit, mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize(("asked", "expected"), [(0, 200), (16, 16)])
def test_finetuned_models_may_face_costly_attacks_on_fewer_images(asked, expected):
    study = replace(TINY.finetuning, costly_images=asked)
    found = jobs.row_suite(replace(TINY, finetuning=study, suite=replace(TINY.suite, costly_images=200)))
    assert (found.images, found.costly_images) == (TINY.finetuning.images, expected)


@pytest.mark.parametrize(("asked", "wide"), [(100, 200), (0, 8)])
def test_corruptions_of_a_wide_row_are_shown_on_twice_as_many_images(asked, wide):
    study = replace(TINY.finetuning, images=4, wide_images=12)
    settings = replace(TINY, finetuning=study, suite=replace(TINY.suite, c_images=asked))
    assert jobs.wide_suite(settings).c_images == wide


def test_other_models_have_a_base_plain_and_nullspace_row_of_one_seed(bench, monkeypatch, trainings):
    opened = []
    monkeypatch.setattr(trials, "open_bench", lambda settings, model: opened.append(model) or bench)
    settings = replace(TINY, models=("first", "second"), finetuning=replace(TINY.finetuning, seeds=2))
    found = trials.other_models(settings)
    assert opened == ["second"]
    assert list(found) == [row.model for row in found.values()] == ["second base", "second plain", "second nullspace"]
    assert trainings == [("plain", 0), ("nullspace", 0)]
    assert trials.other_models(TINY) == {}


def test_a_round_with_any_noise_that_is_not_inside_has_missed_eps():
    inside, on_it = (NoiseFacts(1.0, gap_heldout=gap, match_heldout=1.0) for gap in (0.01, 0.03))
    history = [Round(noises=[inside, on_it]), Round(noises=[inside, inside]), Round()]
    job = jobs.Job(history, {}, evaluation("m", clean=[1, 0]))
    rows = [trials._row_of(job, eps) for eps in (0.03, None)]
    assert [(row.noise_rounds, row.missed_eps) for row in rows] == [(2, 1), (2, 0)]


def test_costs_by_hand(monkeypatch):
    cost = {"units": {"noise": 30, "updates": 90}, "images_of_standard_training": 40}
    monkeypatch.setattr(trials, "seed_jobs", lambda *_: [jobs.Job([], cost, evaluation("m", clean=[1]))] * 2)
    table = trials.costs(None, TINY, ["nullspace"])
    assert table.seed.tolist() == [0, 1]
    assert table.iloc[0, 2:].tolist() == [30, 90, 0.25, 40]
