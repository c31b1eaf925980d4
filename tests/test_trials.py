"""The finetuned rows of the notebooks: trained once, measured on the same images, compared as pairs."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_vit
from scipy import stats

from nslib import jobs, trials
from nslib.config import ApproximateStudy, DataConfig, FinetuneConfig, FinetuningStudy, NoiseConfig, SuiteConfig
from nslib.data.corruptions import CORRUPTIONS, SEVERITIES
from nslib.data.source import open_source
from nslib.evaluate.bench import Bench
from nslib.evaluate.comparison import mean_difference, pool_seeds
from nslib.evaluate.suite import Evaluation
from nslib.finetune.noises import NoiseFacts
from nslib.finetune.result import at_equal_steps, over_seeds, slope_table
from nslib.finetune.state import Round
from nslib.kept import kept
from nslib.makers import only_maker
from nslib.processes import ALONE
from nslib.settings import Settings
from nslib.staged import renormalised
from nslib.traces import traced

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


def evaluation(name: str, **columns) -> Evaluation:
    return Evaluation(name, {c: {"": np.array(hits, bool)} for c, hits in columns.items()})


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
    table = trials.rows_table(found)
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
    assert trials.missed_eps(found) == {"nullspace": 4}
    assert trials.rows_table(found).missed_eps.tolist() == ["", "", "4 of 4 rounds"]
    assert trials.missed_eps({"nullspace": trials.row(bench, TINY, "nullspace")}) == {"nullspace": 0}
    assert "missed_eps" not in trials.rows_table({"plain": found["plain"]})


def test_columns_that_every_model_has():
    found = {"a": evaluation("a", clean=[1], c=[1], fgsm=[0]), "b": evaluation("b", fgsm=[1], clean=[1])}
    assert trials.shown(found, ["fgsm", "c", "clean", "damagenet"]) == ["fgsm", "clean"]


def test_traced_rounds_are_measured_on_every_column(bench):
    history = jobs.finetuned(bench, TINY, "plain").history
    assert [set(r.measured) for r in history] == [{"clean", "adversarial", "shifted"}] * 2
    assert set(traced(bench, TINY, bench.model)) == {"clean", "adversarial", "shifted"}
    assert jobs.finetuned(bench, TINY, "sam").history[0].measured == {}


def test_the_last_round_measures_the_model_delivered(bench):
    run = jobs.finetuned(bench, TINY, "plain")
    after = traced(bench, TINY, run.model)
    assert run.history[-1].measured == pytest.approx(after)


def test_eps_sets_are_measured_along_fresh_directions(bench):
    table = trials.eps_sets(bench, TINY, ["plain"], eps=0.03)
    assert set(table.model) == {"base", "plain"}
    assert {"learned", "permuted", "random"} <= set(table.noise)
    assert table.norm.gt(0).all()


def test_fixed_steps_run_only_where_the_study_asks(bench):
    assert trials.fixed_against_early(bench, TINY) == []
    settings = replace(TINY, finetuning=replace(TINY.finetuning, fixed_steps=2))
    (found,) = trials.fixed_against_early(bench, settings)
    assert 0 <= found.low <= found.value <= found.high


def test_mean_difference_by_hand():
    """Two columns of four images: +2 of 4 and -1 of 4 images, 12.5 points on the mean."""
    ours = evaluation("ours", clean=[1, 1, 1, 0], a=[0, 0, 0, 0])
    theirs = evaluation("theirs", clean=[0, 0, 1, 0], a=[1, 0, 0, 0])
    found = mean_difference(ours, theirs, ["clean", "a"])
    assert found.value == pytest.approx((50 - 25) / 2)
    spread = np.var([100, 100, 0, 0], ddof=1) / 4 + np.var([-100, 0, 0, 0], ddof=1) / 4
    unseen = 2 * 2 * 25**2  # an image won and one lost more in each column
    assert found.high - found.value == pytest.approx(1.96 * np.sqrt(spread + unseen) / 2)
    assert found.n == 8
    single = [evaluation(name, clean=[1], a=[value]) for name, value in (("ours", 1), ("theirs", 0))]
    alone = mean_difference(*single, ["clean", "a"])
    assert (alone.value, alone.low < -100, alone.high > 100) == (50, True, True)  # one image tells nothing
    with pytest.raises(ValueError, match="lacking are c"):
        mean_difference(ours, theirs, ["clean", "c"])
    with pytest.raises(ValueError, match="lacking are all"):
        mean_difference(ours, theirs, [])


def test_seeds_measured_on_other_images_are_not_pooled():
    with pytest.raises(ValueError, match="seeds of plain must be measured alike"):
        pool_seeds([evaluation("a", clean=[1, 0]), evaluation("b", clean=[1, 0, 1])], "plain")


def test_differences_to_one_of_the_rows():
    found = {"base": evaluation("base", clean=[0, 0, 1, 1]), "ours": evaluation("ours", clean=[1, 0, 1, 1])}
    table = trials.differences_to(found, "base")
    assert table.model.tolist() == ["ours"]
    assert table.difference.tolist() == [25]
    assert table.n.tolist() == [4]


def test_models_of_one_seed_are_compared_by_their_wide_rows():
    """Of several seeds by these; of a model that the wide rows lack, or against one, by the table's."""
    few = {"clean": [1, 0]}
    found = {"base": evaluation("base", **few), "sam": evaluation("sam", **few), "mixup": evaluation("mixup", **few)}
    found |= {name: seeds_of(name, few, few) for name in ("plain", "nullspace")}
    wide = {name: evaluation(name, clean=[0, 0, 1, 1]) for name in ("plain", "nullspace", "sam")}
    table = trials.differences_to(found, "plain", wide).set_index("model")
    assert table.n.to_dict() == {"base": 2, "sam": 4, "mixup": 2, "nullspace": 2}
    assert table.seeds["nullspace"] == 2
    assert set(trials.differences_to(found, "base", wide).n) == {2}


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


def seeds_of(name: str, *seeds: dict) -> Evaluation:
    return pool_seeds([evaluation(name, **columns) for columns in seeds], name)


def test_differences_over_seeds_are_paired_seed_by_seed():
    """Both methods vary from seed to seed in the same way: their difference does not."""
    ours = seeds_of("ours", {"clean": [1, 1, 1, 1, 0]}, {"clean": [1, 0, 0, 0, 0]})
    theirs = seeds_of("plain", {"clean": [0, 1, 1, 1, 0]}, {"clean": [0, 0, 0, 0, 0]})
    (found,) = trials.column_gains(ours, theirs)
    assert (found.value, found.n, found.seeds) == (20, 5, 2)
    images = 100 * 2.776 * np.std([1, 0, 0, 0, 0], ddof=1) / 5**0.5
    unseen = stats.t.ppf(0.975, 5) * 2**0.5 * 100 / 5  # an image won and one lost more
    assert found.high - found.value == pytest.approx(np.hypot(images, unseen), rel=1e-3)
    mean = mean_difference(ours, theirs, ["clean"])
    assert mean.high - 20 == pytest.approx(found.high - 20)
    assert (mean.value, mean.seeds) == (20, 2)


def test_seeds_pair_with_the_one_of_the_base():
    base = replace(evaluation("base", clean=[0, 0, 1, 1], a=[0, 0, 0, 0]), fixed=True)
    ours = seeds_of("ours", {"clean": [0, 1, 1, 1], "a": [0, 0, 1, 0]}, {"clean": [1, 1, 1, 1], "a": [0, 0, 1, 0]})
    found = trials.column_gains(ours, base)
    assert [(e.value, e.n, e.seeds) for e in found] == [(37.5, 4, 2), (25, 4, 2)]
    gain = mean_difference(ours, base, ["clean", "a"])
    assert (gain.value, gain.n, gain.seeds) == (31.25, 8, 2)
    three = seeds_of("three", *[{"clean": [0, 1, 1, 1], "a": [0, 0, 0, 0]}] * 3)
    for compare in (trials.column_gains, lambda a, b: mean_difference(a, b, ["clean"])):
        with pytest.raises(ValueError, match="seeds are paired one by one, got 2 and 3: measure as many of both"):
            compare(ours, three)


def test_a_seed_is_lucky_on_all_columns_at_once():
    """Luck that is the same on both columns does not average out over them; luck that is opposite does."""
    base = replace(evaluation("base", clean=[0] * 40, a=[0] * 40), fixed=True)
    up, down = [1] * 20 + [0] * 20, [1] * 4 + [0] * 36
    same = seeds_of("same", {"clean": up, "a": up}, {"clean": down, "a": down})
    opposite = seeds_of("opposite", {"clean": up, "a": down}, {"clean": down, "a": up})
    widths = []
    for ours in (same, opposite):
        found = mean_difference(ours, base, ["clean", "a"])
        assert found.value == 30
        widths.append(found.high - found.low)
    assert widths[0] > 5 * widths[1]


def test_columns_with_fewer_of_the_same_images():
    """A column of the first two of four images weighs as much as the others in the mean, and n counts images once."""
    ours = evaluation("ours", clean=[1, 0, 1, 1], fgsm=[1, 1])
    theirs = evaluation("theirs", clean=[0, 0, 0, 0], fgsm=[0, 1])
    found = mean_difference(ours, theirs, ["clean", "fgsm"])
    assert found.value == pytest.approx((75 + 50) / 2)
    assert found.n == 4
    spread = np.var(np.array([1 + 2, 0, 1, 1]) * 100, ddof=1) / 4
    unseen = 2 * 25**2 + 2 * 50**2
    assert found.high - found.value == pytest.approx(1.96 * np.sqrt(spread + unseen) / 2)


def corrupted(name: str, wrong: float, published: bool = False) -> Evaluation:
    """Of 20 images a share is wrong under every corruption."""
    hits = {f"{c}/{s}": np.arange(20) >= 20 * wrong for c in CORRUPTIONS for s in SEVERITIES}
    return Evaluation(name, {"clean": {"": np.ones(20, bool)}, "c": hits}, published_c=published)


def test_rows_name_the_ratio_of_the_corruption_errors():
    found = {"base": corrupted("base", 0.5), "ours": corrupted("ours", 0.4)}
    table = trials.rows_table(found).set_index("model")
    assert table.columns.tolist() == ["seeds", "clean", "c", "c / base", "mean"]
    assert table["c / base"].to_dict() == pytest.approx({"base": 1, "ours": 0.8})
    assert "c / base" not in trials.rows_table({"ours": found["ours"]})
    published = {"base": corrupted("base", 0.5, True), "ours": corrupted("ours", 0.4, True)}
    assert "c / base" not in trials.rows_table(published)
    against = trials.differences_to({"plain": found["base"], "ours": found["ours"]}, "plain")
    assert against["ratio to plain"].tolist()[1] == pytest.approx(0.8)


def test_rows_have_estimates():
    found = {"base": corrupted("base", 0.5), "ours": seeds_of("ours", {"clean": [1, 0, 1]}, {"clean": [1, 1, 0]})}
    table = trials.rows_estimates(found)
    assert table.columns.tolist() == ["model", "column", "measure", "value", "low", "high", "n", "seeds"]
    assert table[["model", "column", "measure"]].to_numpy().tolist() == [
        ["base", "clean", "top-1"],
        ["base", "c", "corruption error"],
        ["ours", "clean", "top-1"],
    ]
    assert table.value.tolist() == pytest.approx([100, 50, 100 * 4 / 6])
    assert table.n.tolist() == [20, 20, 3]
    assert table.seeds.tolist() == [1, 1, 2]
    assert (table.low <= table.value).all()
    assert (table.value <= table.high).all()


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


def test_gains_by_column_and_over_columns():
    found = {
        "base": evaluation("base", clean=[0, 0, 1, 1], a=[0, 0, 0, 0]),
        "plain": evaluation("plain", clean=[1, 0, 1, 1], a=[0, 0, 0, 0]),
        "nullspace": evaluation("nullspace", clean=[1, 1, 1, 1], a=[1, 0, 0, 0]),
    }
    by_column = trials.column_gains(found["nullspace"], found["base"])
    assert [e.value for e in by_column] == [50, 25]
    assert [e.n for e in by_column] == [4, 4]
    table = trials.gains_over(found, "plain", ["clean", "a"])
    assert table.model.tolist() == ["nullspace"]
    assert table.difference.tolist() == [25]
    assert (table.difference_low < 25).all()
    pairs = trials.gains_of(found, "nullspace", ["clean", "a"])
    assert pairs.reference.tolist() == ["base", "plain"]
    assert pairs.difference.tolist() == [37.5, 25]
    assert set(pairs.model) == {"nullspace"}


def test_one_model_alone_has_no_differences():
    found = {"nullspace": evaluation("nullspace", clean=[1, 0])}
    assert trials.gains_of(found, "nullspace", ["clean"]).empty
    assert trials.differences_to(found, "nullspace").empty


def test_mean_difference_of_equal_models_is_no_certainty():
    """Whatever the columns and seeds: images that agree on all of them leave room for others that do not."""
    one = evaluation("one", clean=[1] * 8, a=[0] * 8)
    for ours in (one, pool_seeds([one, one, one], "three")):
        found = mean_difference(ours, ours, ["clean", "a"])
        assert (found.value, found.n, found.seeds) == (0, 16, ours.seeds)
        assert found.low < 0 < found.high


def test_columns_of_the_same_images_are_not_independent():
    """Two views of images that agree are worth one: the interval is nearly that of a single column."""
    won, before = np.arange(4000) % 4 < 3, np.arange(4000) % 4 < 1
    ours = evaluation("ours", clean=won, fgsm=won, a=won)
    theirs = evaluation("theirs", clean=before, fgsm=before, a=before)
    alone = mean_difference(ours, theirs, ["clean"])
    together = mean_difference(ours, theirs, ["clean", "fgsm"])
    assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=1e-3)
    assert together.n == 4000
    apart = mean_difference(ours, theirs, ["clean", "a"])
    assert apart.high - apart.low == pytest.approx((alone.high - alone.low) / np.sqrt(2), rel=1e-3)
    assert apart.n == 8000


def test_two_kinds_of_c_are_never_compared():
    ours = evaluation("ours", c=[1, 0])
    theirs = replace(evaluation("theirs", c=[1, 1]), published_c=True)
    for compare in (lambda: mean_difference(ours, theirs, ["c"]), lambda: trials.column_gains(ours, theirs)):
        with pytest.raises(ValueError, match="the two are never compared"):
            compare()


@pytest.mark.parametrize(("asked", "expected"), [(0, 200), (16, 16)])
def test_finetuned_models_may_face_costly_attacks_on_fewer_images(asked, expected):
    study = replace(TINY.finetuning, costly_images=asked)
    found = jobs.row_suite(replace(TINY, finetuning=study, suite=replace(TINY.suite, costly_images=200)))
    assert (found.images, found.costly_images) == (TINY.finetuning.images, expected)


def test_objectives_that_are_left_out_are_noted():
    found = {"base": evaluation("base", clean=[1, 0]), "plain": evaluation("plain", clean=[1, 1])}
    table = trials.with_absent(trials.rows_table(found), "laptop")
    assert table.model.tolist()[:2] == ["base", "plain"]
    left = table[table.note == "run at full"]
    assert {"nullspace", "sam", "madry"} <= set(left.model)
    assert "plain" not in set(left.model)
    assert left.clean.isna().all()
    elsewhere = trials.with_absent(trials.rows_table(found), "imagenet")
    assert elsewhere.note.dropna().unique().tolist() == ["not run"]


def test_seeds_of_pretraining_luck_make_the_interval_wide_and_images_alone_do_not():
    """Two seeds that disagree on every image, by turns: over images the mean is exact but for the one won and lost."""
    plain = evaluation("plain", clean=[0] * 100)
    ours = pool_seeds([evaluation("a", clean=[1] * 100), evaluation("b", clean=[0] * 100)], "ours")
    (row,) = trials.differences_to({"plain": replace(plain, fixed=True), "ours": ours}, "plain").itertuples()
    assert row.difference == 50
    assert row.difference_high - row.difference > 600  # Student's quantile of one degree of freedom
    assert row.half_images == pytest.approx(100 * 2**0.5 / 100 * 1.984, rel=1e-3)


PUBLISHED_C = {"published_c": True}
PUBLISHED_SETS = {"sources": {"damagenet": "DAmageNet as published", "stylized": "Stylized-ImageNet as published"}}


@pytest.mark.parametrize(
    ("column", "published"),
    [("damagenet", PUBLISHED_SETS), ("stylized", PUBLISHED_SETS), ("c", PUBLISHED_C), ("clean_a", {}), ("clean_r", {})],
)
@pytest.mark.parametrize("seeds", [1, 3])
def test_parts_of_val_and_sets_published_as_made_from_it_may_show_the_same_images(column, published, seeds):
    """In an order of their own: n counts them apart, and the interval is no narrower than if they were the same."""
    won, before = np.arange(400) % 4 < 3, np.arange(400) % 4 < 1

    def both(hits, **facts):
        one = replace(evaluation("m", **dict.fromkeys(("clean", column, "a"), hits)), **facts)
        return pool_seeds([one] * seeds, "m")

    alone = mean_difference(both(won), both(before), ["clean"])
    found = mean_difference(both(won, **published), both(before, **published), ["clean", column])
    assert found.n == 800
    assert found.high - found.low == pytest.approx(alone.high - alone.low, rel=0.01)
    three = mean_difference(both(won, **published), both(before, **published), ["clean", column, "a"])
    assert three.high - three.low == pytest.approx((alone.high - alone.low) * 5**0.5 / 3, rel=0.01)


def test_damagenet_made_here_shows_the_images_of_val():
    ours = evaluation("ours", clean=[1, 1, 0, 0] * 50, damagenet=[1, 1, 0, 0] * 50)
    theirs = evaluation("theirs", clean=[1, 0, 0, 1] * 50, damagenet=[1, 0, 0, 1] * 50)
    made = replace(ours, sources={"damagenet": "made here on the surrogate"})
    assert mean_difference(made, theirs, ["clean", "damagenet"]).n == 200


@pytest.mark.parametrize(("asked", "wide"), [(100, 200), (0, 8)])
def test_corruptions_of_a_wide_row_are_shown_on_twice_as_many_images(asked, wide):
    study = replace(TINY.finetuning, images=4, wide_images=12)
    settings = replace(TINY, finetuning=study, suite=replace(TINY.suite, c_images=asked))
    assert jobs.wide_suite(settings).c_images == wide


def test_norms_at_equal_steps_by_hand():
    """A norm of 50 that falls by half with each step and grows by .2 a round, of which only the growth is left."""
    steps = [[9, 30, 28, 29, 24], [9, 40, 33, 35, 31]]
    rounds = pd.DataFrame(
        [("nullspace", s, r, 50 + 0.2 * r - 0.5 * n, n) for s, each in enumerate(steps) for r, n in enumerate(each)],
        columns=["objective", "seed", "round", "norm", "steps"],
    )
    rounds = pd.concat([rounds, rounds.assign(objective="plain", norm=float("nan"), steps=float("nan"))])
    found = at_equal_steps(rounds)
    assert found["norm at equal steps"].isna().tolist() == [True, *[False] * 4] * 2 + [True] * 10
    (slope,) = slope_table(found, [("nullspace", "norm at equal steps")]).itertuples()
    means = [50 + 0.2 * 2.5 - 0.5 * np.mean(each[1:]) for each in steps]
    assert slope.value == pytest.approx(np.mean([0.2 / mean for mean in means]))
    assert at_equal_steps(rounds[rounds["round"] < 4])["norm at equal steps"].isna().all()


def test_slopes_and_gains_of_eps_sets_by_hand():
    rounds = pd.DataFrame(
        [("nullspace", s, r, 10 + r * (1 + s), float("nan")) for s in range(2) for r in range(4)],
        columns=["objective", "seed", "round", "norm", "steps"],
    )
    (slope,) = slope_table(rounds, [("nullspace", "norm"), ("random", "norm")]).itertuples()
    assert (slope.objective, slope.quantity, slope.seeds) == ("nullspace", "norm", 2)
    assert slope.value == pytest.approx((1 / 12 + 2 / 14) / 2)
    both = pd.concat([rounds, rounds.assign(objective="plain", norm=float("nan"))])
    assert slope_table(both, [("plain", "norm")]).empty  # it has no noise, in rounds that others have
    norms = {"base": (60.0, 70.0), "plain": (61.0, 70.0), "nullspace": (63.0, 75.0)}
    sizes = pd.DataFrame(
        [(m, i, "learned", n) for m, both in norms.items() for i, n in enumerate(both)],
        columns=["model", "start", "noise", "norm"],
    )
    found = trials.eps_set_gains(sizes, ["base", "plain"]).set_index(["model", "reference"]).value
    assert found.to_dict() == {("nullspace", "base"): 4.0, ("plain", "base"): 0.5, ("nullspace", "plain"): 3.5}


def test_gains_by_seed_where_the_reference_has_fewer():
    def seeds(*hits):
        return [trials.Row(**vars(evaluation("m", clean=h))) for h in hits]

    each = {"plain": seeds([1, 0]), "nullspace": seeds([1, 1], [1, 0], [0, 0])}
    table = trials.gains_by_seed(each, "plain", ["clean"])
    assert table[["model", "seed", "difference"]].values.tolist() == [["nullspace", 0, 50.0]]


def test_one_seed_is_compared_with_the_first_of_several():
    """Only a model without luck of its own may stand against all seeds, or their spread would count for half."""
    several = pool_seeds([evaluation("a", clean=[1, 1, 0, 1]), evaluation("b", clean=[0, 0, 0, 1])], "several")
    one = evaluation("one", clean=[1, 0, 0, 1])
    found = mean_difference(one, several, ["clean"])
    assert (found.value, found.seeds) == (-25, 1)
    assert trials.column_gains(several, one)[0].seeds == 1
    found = mean_difference(several, replace(one, fixed=True), ["clean"])
    assert (found.value, found.seeds) == (0, 2)


def test_other_models_have_a_base_plain_and_nullspace_row_of_one_seed(bench, monkeypatch, trainings):
    opened = []
    monkeypatch.setattr(trials, "open_bench", lambda settings, model: opened.append(model) or bench)
    settings = replace(TINY, models=("first", "second"), finetuning=replace(TINY.finetuning, seeds=2))
    found = trials.other_models(settings)
    assert opened == ["second"]
    assert list(found) == [row.model for row in found.values()] == ["second base", "second plain", "second nullspace"]
    assert trainings == [("plain", 0), ("nullspace", 0)]
    assert trials.other_models(TINY) == {}


def test_half_widths_leave_costly_attacks_out():
    rows = [
        ("nullspace", "clean", -1, 3, 0.5),
        ("permuted", "c", -1, 2, 0.7),
        ("sam", "fgsm", 0, 1, 0.4),
        ("nullspace", "cw", 0, 9, 4),
    ]
    against = pd.DataFrame(rows, columns=["model", "column", "difference_low", "difference_high", "half_images"])
    found = trials.half_widths(against, ["nullspace", "permuted"])
    assert found == {"images": 0.7, "images and seeds": 2.0, "images, of the other objectives": 0.4}
    assert "images, of the other objectives" not in trials.half_widths(against[:2], ["nullspace", "permuted"])


def test_the_base_model_is_compared_with_all_seeds_from_either_side():
    several = pool_seeds([evaluation("a", clean=[1, 1, 0, 1]), evaluation("b", clean=[0, 0, 0, 1])], "several")
    base = replace(evaluation("base", clean=[1, 0, 0, 1]), fixed=True)
    for ours, theirs in ((base, several), (several, base)):
        found = mean_difference(ours, theirs, ["clean"])
        assert (found.value, found.seeds) == (0, 2)
        assert trials.column_gains(ours, theirs)[0].seeds == 2


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


def test_figures_against_plain_have_what_claims_speak_of_apart_from_other_controls():
    models = ["base", "nullspace", "permuted", "madry", "random", "sam", "trades"]
    parts = trials.claimed_and_others(pd.DataFrame({"model": models}))
    assert {name: rows.model.tolist() for name, rows in parts.items()} == {
        "": ["base", "nullspace", "random"],
        "_others": ["permuted", "sam"],
    }
    assert list(trials.claimed_and_others(pd.DataFrame({"model": ["nullspace", "madry"]}))) == [""]
