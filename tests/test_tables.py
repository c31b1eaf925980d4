"""Rows of finetuned models as tables, and what one gains over another, as pairs on the same images."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from nslib.config import NoiseConfig
from nslib.data.corruptions import CORRUPTIONS, SEVERITIES
from nslib.evaluate.comparison import mean_difference, pool_seeds
from nslib.evaluate.suite import Evaluation
from nslib.finetune.result import slope_table, without_decay
from nslib.study import tables


def evaluation(name: str, **columns) -> Evaluation:
    return Evaluation(name, {c: {"": np.array(hits, bool)} for c, hits in columns.items()})


def seeds_of(name: str, *seeds: dict) -> Evaluation:
    return pool_seeds([evaluation(name, **columns) for columns in seeds], name)


def corrupted(name: str, wrong: float, published: bool = False) -> Evaluation:
    """Of 20 images a share is wrong under every corruption."""
    hits = {f"{c}/{s}": np.arange(20) >= 20 * wrong for c in CORRUPTIONS for s in SEVERITIES}
    return Evaluation(name, {"clean": {"": np.ones(20, bool)}, "c": hits}, published_c=published)


def test_columns_that_every_model_has():
    found = {"a": evaluation("a", clean=[1], c=[1], fgsm=[0]), "b": evaluation("b", fgsm=[1], clean=[1])}
    assert tables.shown(found, ["fgsm", "c", "clean", "damagenet"]) == ["fgsm", "clean"]


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
    table = tables.differences_to(found, "base")
    assert table.model.tolist() == ["ours"]
    assert table.difference.tolist() == [25]
    assert table.n.tolist() == [4]


def test_models_of_one_seed_are_compared_by_their_wide_rows():
    """Of several seeds by these; of a model that the wide rows lack, or against one, by the table's."""
    few = {"clean": [1, 0]}
    found = {"base": evaluation("base", **few), "sam": evaluation("sam", **few), "mixup": evaluation("mixup", **few)}
    found |= {name: seeds_of(name, few, few) for name in ("plain", "nullspace")}
    wide = {name: evaluation(name, clean=[0, 0, 1, 1]) for name in ("plain", "nullspace", "sam")}
    table = tables.differences_to(found, "plain", wide).set_index("model")
    assert table.n.to_dict() == {"base": 2, "sam": 4, "mixup": 2, "nullspace": 2}
    assert table.seeds["nullspace"] == 2
    assert set(tables.differences_to(found, "base", wide).n) == {2}


def test_differences_over_seeds_are_paired_seed_by_seed():
    """Both methods vary from seed to seed in the same way: their difference does not."""
    ours = seeds_of("ours", {"clean": [1, 1, 1, 1, 0]}, {"clean": [1, 0, 0, 0, 0]})
    theirs = seeds_of("plain", {"clean": [0, 1, 1, 1, 0]}, {"clean": [0, 0, 0, 0, 0]})
    (found,) = tables.column_gains(ours, theirs).values()
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
    found = tables.column_gains(ours, base)
    told = {column: (e.value, e.n, e.seeds) for column, e in found.items()}
    assert told == {"clean": (37.5, 4, 2), "a": (25, 4, 2)}
    gain = mean_difference(ours, base, ["clean", "a"])
    assert (gain.value, gain.n, gain.seeds) == (31.25, 8, 2)
    three = seeds_of("three", *[{"clean": [0, 1, 1, 1], "a": [0, 0, 0, 0]}] * 3)
    for compare in (tables.column_gains, lambda a, b: mean_difference(a, b, ["clean"])):
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


def test_rows_name_the_ratio_of_the_corruption_errors():
    found = {"base": corrupted("base", 0.5), "ours": corrupted("ours", 0.4)}
    table = tables.rows_table(found).set_index("model")
    assert table.columns.tolist() == ["seeds", "clean", "c", "c / base", "mean"]
    assert table["c / base"].to_dict() == pytest.approx({"base": 1, "ours": 0.8})
    assert "c / base" not in tables.rows_table({"ours": found["ours"]})
    published = {"base": corrupted("base", 0.5, True), "ours": corrupted("ours", 0.4, True)}
    assert "c / base" not in tables.rows_table(published)
    against = tables.differences_to({"plain": found["base"], "ours": found["ours"]}, "plain")
    assert against["ratio to plain"].tolist()[1] == pytest.approx(0.8)


def test_rows_have_estimates():
    found = {"base": corrupted("base", 0.5), "ours": seeds_of("ours", {"clean": [1, 0, 1]}, {"clean": [1, 1, 0]})}
    table = tables.rows_estimates(found)
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


def test_gains_by_column_and_over_columns():
    found = {
        "base": evaluation("base", clean=[0, 0, 1, 1], a=[0, 0, 0, 0]),
        "plain": evaluation("plain", clean=[1, 0, 1, 1], a=[0, 0, 0, 0]),
        "nullspace": evaluation("nullspace", clean=[1, 1, 1, 1], a=[1, 0, 0, 0]),
    }
    by_column = tables.column_gains(found["nullspace"], found["base"])
    assert {column: (e.value, e.n) for column, e in by_column.items()} == {"clean": (50, 4), "a": (25, 4)}
    table = tables.gains_over(found, "plain", ["clean", "a"])
    assert table.model.tolist() == ["nullspace"]
    assert table.difference.tolist() == [25]
    assert (table.difference_low < 25).all()
    pairs = tables.gains_of(found, "nullspace", ["clean", "a"])
    assert pairs.reference.tolist() == ["base", "plain"]
    assert pairs.difference.tolist() == [37.5, 25]
    assert set(pairs.model) == {"nullspace"}


def test_one_model_alone_has_no_differences():
    found = {"nullspace": evaluation("nullspace", clean=[1, 0])}
    assert tables.gains_of(found, "nullspace", ["clean"]).empty
    assert tables.differences_to(found, "nullspace").empty


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
    for compare in (lambda: mean_difference(ours, theirs, ["c"]), lambda: tables.column_gains(ours, theirs)):
        with pytest.raises(ValueError, match="the two are never compared"):
            compare()


def test_objectives_that_are_left_out_are_noted():
    found = {"base": evaluation("base", clean=[1, 0]), "plain": evaluation("plain", clean=[1, 1])}
    table = tables.with_absent(tables.rows_table(found), "laptop")
    assert table.model.tolist()[:2] == ["base", "plain"]
    left = table[table.note == "run at full"]
    assert {"nullspace", "sam", "madry"} <= set(left.model)
    assert "plain" not in set(left.model)
    assert left.clean.isna().all()
    elsewhere = tables.with_absent(tables.rows_table(found), "imagenet")
    assert elsewhere.note.dropna().unique().tolist() == ["not run"]


def test_seeds_of_pretraining_luck_make_the_interval_wide_and_images_alone_do_not():
    """Two seeds that disagree on every image, by turns: over images the mean is exact but for the one won and lost."""
    plain = evaluation("plain", clean=[0] * 100)
    ours = pool_seeds([evaluation("a", clean=[1] * 100), evaluation("b", clean=[0] * 100)], "ours")
    (row,) = tables.differences_to({"plain": replace(plain, fixed=True), "ours": ours}, "plain").itertuples()
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


def test_norm_without_decay_is_that_of_a_noise_that_nothing_else_moves():
    """A noise that AdamW moves by weight decay alone keeps its norm, however many steps it takes."""
    cfg, start = NoiseConfig(steps=12, lr=0.3, weight_decay=0.2), torch.full((3,), 5.0)
    optimizer = torch.optim.AdamW([noise := start.clone().requires_grad_()], lr=0.3, weight_decay=0.2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)
    lines = [("nullspace", 0, 0, noise.norm().item(), 0)]
    for step in range(1, 13):
        noise.grad = torch.zeros(3)
        optimizer.step()
        schedule.step()
        lines.append(("nullspace", 0, step, noise.norm().item(), step))
    lines.append(("random", 0, 0, 7.0, float("nan")))
    rounds = pd.DataFrame(lines, columns=["objective", "seed", "round", "norm", "steps"])
    found = without_decay(rounds, cfg)["norm without decay"].tolist()
    assert rounds.norm[12] < 0.8 * rounds.norm[0]
    assert found[:13] == pytest.approx([start.norm().item()] * 13, rel=1e-5)
    assert np.isnan(found[13])


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
        [(m, 0, 0, i, "learned", n) for m, both in norms.items() for i, n in enumerate(both)],
        columns=["model", "seed", "block", "start", "noise", "norm"],
    )
    found = tables.eps_set_gains(sizes, ["base", "plain"]).set_index(["model", "reference"]).value
    assert found.to_dict() == {("nullspace", "base"): 4.0, ("plain", "base"): 0.5, ("nullspace", "plain"): 3.5}


def test_gains_of_eps_sets_are_paired_by_seed_and_start():
    norms = {"base": [(60, 70)], "plain": [(61, 70), (60, 68)], "nullspace": [(63, 75), (66, 72)], "more": [(61, 71)]}
    lines = [(m, s, 0, i, "learned", n) for m, own in norms.items() for s, e in enumerate(own) for i, n in enumerate(e)]
    sizes = pd.DataFrame(lines, columns=["model", "seed", "block", "start", "noise", "norm"])
    found = tables.eps_set_gains(sizes, ["base", "plain"]).set_index(["model", "reference"])
    told = found[["value", "n", "seeds"]].apply(tuple, axis=1).to_dict()
    assert told[("nullspace", "plain")] == (4.25, 2, 2)  # 2, 5, 6, 4
    assert told[("nullspace", "base")] == (4.0, 2, 2)  # base before each seed
    assert told[("more", "plain")] == (0.5, 2, 1)  # with the first seed alone: 0, 1
    of_starts, of_seeds = 12.706 * 0.25, 12.706 * 0.75  # means 4, 4.5 over seeds; 3.5, 5 over starts; t of one degree
    half = found.high - found.value
    assert half["nullspace", "plain"] == pytest.approx((of_starts**2 + of_seeds**2) ** 0.5, rel=1e-4)
    assert half["more", "plain"] == pytest.approx(12.706 * 0.5, rel=1e-4)
    both = tables.eps_set_gains(sizes, ["plain", "nullspace"])  # no pair twice
    assert both[["model", "reference"]].apply(tuple, axis=1).tolist() == [
        ("nullspace", "plain"), ("more", "plain"), ("more", "nullspace")
    ]  # fmt: skip
    one = tables.eps_set_gains(sizes[sizes.start == 0], ["plain"]).set_index("model")  # 2 and 6: over seeds alone
    assert (one.value["nullspace"], one.n["nullspace"], one.seeds["nullspace"]) == (4, 1, 2)
    assert one.high["nullspace"] == pytest.approx(4 + 12.706 * 2, rel=1e-4)
    single = tables.eps_set_gains(sizes[(sizes.start == 0) & (sizes.seed == 0)], ["plain"]).set_index("model")
    assert (single.value["nullspace"], single.blocks["nullspace"]) == (2, 1)
    assert np.isnan(single.high["nullspace"])


def test_other_images_widen_the_gains_of_eps_sets():
    """Blocks in any order, of which the controls have one: 3, 4 on the first and -1, 2 on the second."""
    norms = {"base": [(60, 70), (50, 60)], "plain": [(63, 74), (49, 62)]}
    lines = [(m, 0, b, i, "learned", n) for m, own in norms.items() for b, e in enumerate(own) for i, n in enumerate(e)]
    lines += [(m, 0, 0, i, "permuted", 10 + i) for m in norms for i in range(2)]
    sizes = pd.DataFrame(lines[::-1], columns=["model", "seed", "block", "start", "noise", "norm"])
    found = tables.eps_set_gains(sizes, ["base"]).set_index("noise")
    assert found.blocks.to_dict() == {"learned": 2, "permuted": 1}
    assert (found.value["learned"], found.value["permuted"], found.n["learned"]) == (2, 0, 2)
    of_blocks, of_starts = 12.706 * 1.5, 12.706 * 1.0  # means 3.5, .5 and 1, 3
    assert found.high["learned"] == pytest.approx(2 + (of_blocks**2 + of_starts**2) ** 0.5, rel=1e-4)


def test_gains_by_seed_where_the_reference_has_fewer():
    def seeds(*hits):
        return [tables.Row(**vars(evaluation("m", clean=h))) for h in hits]

    each = {"plain": seeds([1, 0]), "nullspace": seeds([1, 1], [1, 0], [0, 0])}
    table = tables.gains_by_seed(each, "plain", ["clean"])
    assert table[["model", "seed", "difference"]].values.tolist() == [["nullspace", 0, 50.0]]


def test_one_seed_is_compared_with_the_first_of_several():
    """Only a model without luck of its own may stand against all seeds, or their spread would count for half."""
    several = pool_seeds([evaluation("a", clean=[1, 1, 0, 1]), evaluation("b", clean=[0, 0, 0, 1])], "several")
    one = evaluation("one", clean=[1, 0, 0, 1])
    found = mean_difference(one, several, ["clean"])
    assert (found.value, found.seeds) == (-25, 1)
    assert tables.column_gains(several, one)["clean"].seeds == 1
    found = mean_difference(several, replace(one, fixed=True), ["clean"])
    assert (found.value, found.seeds) == (0, 2)


def test_half_widths_leave_costly_attacks_out():
    rows = [
        ("nullspace", "clean", -1, 3, 0.5),
        ("permuted", "c", -1, 2, 0.7),
        ("sam", "fgsm", 0, 1, 0.4),
        ("nullspace", "cw", 0, 9, 4),
        ("base", "clean", 0, 9, 4),
    ]
    against = pd.DataFrame(rows, columns=["model", "column", "difference_low", "difference_high", "half_images"])
    found = tables.half_widths(against, ["nullspace", "permuted"])
    assert found == {"images": 0.7, "images and seeds": 2.0, "images, of the other objectives": 0.4}
    assert "images, of the other objectives" not in tables.half_widths(against[:2], ["nullspace", "permuted"])


def test_the_base_model_is_compared_with_all_seeds_from_either_side():
    several = pool_seeds([evaluation("a", clean=[1, 1, 0, 1]), evaluation("b", clean=[0, 0, 0, 1])], "several")
    base = replace(evaluation("base", clean=[1, 0, 0, 1]), fixed=True)
    for ours, theirs in ((base, several), (several, base)):
        found = mean_difference(ours, theirs, ["clean"])
        assert (found.value, found.seeds) == (0, 2)
        assert tables.column_gains(ours, theirs)["clean"].seeds == 2


def test_figures_against_plain_have_what_claims_speak_of_apart_from_other_controls():
    models = ["base", "nullspace", "permuted", "madry", "random", "sam", "nullspace_by_batch", "trades"]
    parts = tables.claimed_and_others(pd.DataFrame({"model": models}))
    assert {name: rows.model.tolist() for name, rows in parts.items()} == {
        "": ["base", "nullspace", "random", "nullspace_by_batch"],
        "_others": ["permuted", "sam"],
    }
    assert list(tables.claimed_and_others(pd.DataFrame({"model": ["nullspace", "madry"]}))) == [""]
