"""The suite: what it shows, that it is resumed and not repeated, that processes and settings do not mix, its errors."""

import math
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, make_vit
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer

from nslib.attacks.authors import attack_normalised
from nslib.attacks.carlini import Nearest
from nslib.attacks.gradient import fgsm
from nslib.attacks.surrogate import SurrogateCNN
from nslib.config import DataConfig, SuiteConfig
from nslib.data.corruptions import CORRUPTIONS, corrupt
from nslib.data.shapes import Batch, render
from nslib.data.source import open_source
from nslib.evaluate import bench as bench_module
from nslib.evaluate import columns as columns_module
from nslib.evaluate import suite as suite_module
from nslib.evaluate.bench import Bench
from nslib.evaluate.columns import BESIDE, COLUMNS, hits_of, parts_of
from nslib.evaluate.comparison import differences, table2_row
from nslib.evaluate.metrics import BY_CUE, corruption_ratio
from nslib.evaluate.suite import dry_run, evaluate_model
from nslib.machine.processes import Share
from nslib.models import load_model
from nslib.vit.staged import StagedViT

SUITE = SuiteConfig(images=10, costly_images=4, batch=4, pgd_steps=2, cw_steps=3, patchfool_steps=2)
CHEAP = replace(SUITE, columns=("clean", "fgsm", "v2"))
ON_SHAPES = [c for c in COLUMNS if c not in (*BESIDE.values(), *BY_CUE)]


@pytest.fixture
def source(vit):
    return open_source(DataConfig(), vit)


@pytest.fixture
def surrogate():
    torch.manual_seed(0)
    return SurrogateCNN(10, 32).eval()


@pytest.fixture
def counted(monkeypatch):
    """Parts computed, not read from the store."""
    parts = []

    def noted(bench, part):
        parts.append(part)
        return hits_of(bench, part)

    monkeypatch.setattr(suite_module, "hits_of", noted)
    return parts


class Masked:
    """Shapes of which a split may only be answered with some classes, and of which there are only so many."""

    def __init__(self, source, *, classes=None, count=None, labels=None):
        self.source, self._classes, self._count, self._labels = source, classes, count, labels

    def take(self, split, n, *, start=0):
        images, labels = self.source.take("val", n, start=start)
        return Batch(images, labels if self._labels is None else torch.full_like(labels, self._labels))

    def count(self, split):
        return self._count

    def missing(self, split):
        return ""

    def named(self, split):
        return False

    def classes(self, split):
        return torch.tensor(self._classes) if self._classes and split in ("a", "val:a") else None

    def identity(self, split):
        return {"split": split}


def test_more_corrupted_images_than_are_kept_are_not_all_made_anew(vit, source, monkeypatch):
    cache, made = bench_module._corrupted.cache, []
    cache.clear()
    monkeypatch.setattr(bench_module, "corrupt", lambda *a, **k: (made.append(1), corrupt(*a, **k))[1])
    bench = Bench(vit, source, SUITE)
    bench.corrupted("fog", 1, 0, 1)
    monkeypatch.setattr(cache, "_Cache__maxsize", 10 * cache.currsize)
    for _ in range(2):  # two models, one after the other
        for start in range(12):
            bench.corrupted("fog", 1, start, start + 1)
    assert 12 < len(made) < 22
    assert cache.currsize <= cache.maxsize
    cache.clear()


def test_every_column_on_shapes(vit, source, surrogate):
    found = evaluate_model(vit, source, replace(SUITE, columns=tuple(ON_SHAPES)), surrogate=surrogate, progress=False)
    assert found.missing == {}
    assert list(found.hits) == ON_SHAPES
    for column, hits in found.hits.items():
        assert len(hits) == (75 if column == "c" else 1)
        assert {h.shape for h in hits.values()} == {(4,) if COLUMNS[column].costly else (10,)}
    table = found.table().set_index("column")
    assert table.value.between(0, 100).all()
    assert (table.low <= table.value).all()
    assert (table.value <= table.high).all()
    assert table.measure["c"] == "corruption error"
    assert table.measure.drop("c").eq("top-1").all()


def test_columns_are_what_they_say(vit, source):
    images, labels = render("val", range(10), size=32)
    with torch.no_grad():
        clean = vit(images).argmax(1) == labels
        attacked = vit(fgsm(vit, images, labels, eps=CHEAP.fgsm_eps)).argmax(1) == labels
        v2_images, v2_labels = render("v2", range(10), size=32)
        shifted = vit(v2_images).argmax(1) == v2_labels
        foggy = vit(corrupt(images, "fog", 3, indices=range(10))).argmax(1) == labels
    found = evaluate_model(vit, source, replace(CHEAP, columns=("clean", "fgsm", "v2", "c")), progress=False)
    for hits, expected in ((found.hits["clean"][""], clean), (found.hits["fgsm"][""], attacked),
                           (found.hits["v2"][""], shifted), (found.hits["c"]["fog/3"], foggy)):  # fmt: skip
        assert hits.tolist() == expected.tolist()
    row = found.table().set_index("column").loc["c"]
    assert row.value == pytest.approx(100 - found.estimate("c").value)


def test_corrupted_images_are_made_once_for_all_models(vit, source, monkeypatch):
    made = []
    monkeypatch.setattr(bench_module, "corrupt", lambda *a, **k: (made.append(a[1:]), corrupt(*a, **k))[1])
    suite = replace(CHEAP, columns=("c",), seed=71)  # of its own, so that no other test has made them
    rows = [evaluate_model(model, source, suite, progress=False) for model in (make_vit(), vit)]
    assert len(made) == 15 * 5 * 3  # three batches, and not once more for the second model
    assert len(rows[1].hits["c"]) == 15 * 5
    evaluate_model(vit, source, replace(suite, seed=72), progress=False)
    assert len(made) == 2 * 15 * 5 * 3


def test_parts_have_a_fixed_composition(vit, source):
    bench = Bench(vit, source, SUITE)
    assert [(p.start, p.stop) for p in parts_of("clean", bench)] == [(0, 4), (4, 8), (8, 10)]
    assert [(p.start, p.stop) for p in parts_of("cw", bench)] == [(0, 4)]
    parts = parts_of("c", bench)
    assert len(parts) == 15 * 3
    assert [p.corruption for p in parts[:15]] == list(CORRUPTIONS)
    assert len(set(parts)) == len(parts)
    later = Bench(vit, source, replace(SUITE, first=8, c_images=3))
    assert [(p.start, p.stop) for p in parts_of("clean", later)] == [(8, 12), (12, 16), (16, 18)]
    assert {(p.start, p.stop) for p in parts_of("c", later)} == {(8, 11)}
    few = Bench(vit, Masked(source, count=7), replace(SUITE, first=7))
    with pytest.raises(ValueError, match="first must be below the 7 images of val, got 7"):
        parts_of("clean", few)


def test_a_data_set_with_fewer_images_is_shown_whole(vit, source):
    found = evaluate_model(vit, Masked(source, count=7), CHEAP, progress=False)
    assert {len(h[""]) for h in found.hits.values()} == {7}


def test_a_second_run_computes_nothing(vit, source, counted):
    expected = evaluate_model(vit, source, CHEAP, progress=False)
    assert len(counted) == 9
    again = evaluate_model(vit, source, CHEAP, progress=False)
    assert len(counted) == 9
    for column in CHEAP.columns:
        assert again.hits[column][""].tolist() == expected.hits[column][""].tolist()


def test_a_kill_in_the_middle_loses_one_part(vit, source, monkeypatch):
    done = []

    def killed(bench, part):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(part)
        return hits_of(bench, part)

    monkeypatch.setattr(suite_module, "hits_of", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate_model(vit, source, CHEAP, progress=False)
    rest = []
    monkeypatch.setattr(suite_module, "hits_of", lambda bench, part: (rest.append(part), hits_of(bench, part))[1])
    evaluate_model(vit, source, CHEAP, progress=False)
    assert len(done) + len(rest) == 9
    assert not set(done) & set(rest)


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"fgsm_eps": 0.1}, {"fgsm"}),
        ({"pgd_steps": 7, "cw_budget": 2.0, "seed": 1}, set()),
        ({"images": 9}, {"clean", "fgsm", "v2"}),
        ({"protocol": "authors"}, {"fgsm"}),
    ],
)
def test_other_settings_never_meet_old_results(vit, source, counted, change, again):
    """Only columns that a changed setting touches are computed again; with another n only the last part."""
    evaluate_model(vit, source, CHEAP, progress=False)
    counted.clear()
    evaluate_model(vit, source, replace(CHEAP, **change), progress=False)
    assert {p.column for p in counted} == again
    if "images" in change:
        assert [(p.start, p.stop) for p in counted] == [(8, 9)] * 3


def test_other_models_and_data_never_meet_old_results(vit, source, counted):
    evaluate_model(vit, source, CHEAP, progress=False)
    counted.clear()
    evaluate_model(make_vit(seed=1), source, CHEAP, progress=False)
    assert len(counted) == 9
    counted.clear()
    evaluate_model(vit, open_source(DataConfig(seed=1), vit), CHEAP, progress=False)
    assert len(counted) == 9
    counted.clear()
    other = make_vit()
    other.load_state_dict(vit.state_dict())
    other.mean.fill_(0.4)  # the same weights behind another normalisation
    evaluate_model(other, source, CHEAP, progress=False)
    assert len(counted) == 9


@pytest.mark.parametrize("name", ON_SHAPES)
def test_a_column_reads_no_setting_that_it_does_not_name(vit, source, surrogate, name):
    """A setting that a column reads but does not name would let two settings share one stored result."""
    read = set()

    class Noted:
        def __getattr__(self, setting):
            read.add(setting)
            return getattr(SUITE, setting)

    bench = Bench(vit, source, SUITE, surrogate)
    part = parts_of(name, bench)[0]
    bench.suite = Noted()
    hits_of(bench, part)
    assert read == set(COLUMNS[name].settings)
    assert read <= {f.name for f in fields(SuiteConfig)}


def test_an_image_is_painted_alike_in_every_part(vit, source, monkeypatch):
    drawn = []

    def noted(model, images, labels, *, generator, **budget):
        drawn.extend(g.initial_seed() for g in generator)
        return images

    monkeypatch.setattr(columns_module, "patch_fool", noted)
    for batch in (4, 1, 3):
        bench = Bench(vit, source, replace(SUITE, batch=batch))
        for part in parts_of("patchfool", bench):
            hits_of(bench, part)
    assert drawn[:4] == drawn[4:8] == drawn[8:]
    assert len(set(drawn)) == 4


def test_autoattack_draws_anew_in_every_part(vit, source, monkeypatch):
    drawn = []
    monkeypatch.setattr(columns_module, "auto_attack", lambda m, x, y, *, eps, seed: (drawn.append(seed), x)[1])
    for seed in (0, 2):
        bench = Bench(vit, source, replace(SUITE, batch=2, seed=seed))
        for part in parts_of("autoattack", bench):
            hits_of(bench, part)
    assert len(set(drawn)) == 4  # also of seed 0 from image 2 on, and of seed 2 from image 0 on


def test_a_column_of_another_version_is_computed_again_and_no_other(vit, source, counted, monkeypatch):
    evaluate_model(vit, source, CHEAP, progress=False)
    counted.clear()
    monkeypatch.setitem(COLUMNS, "fgsm", replace(COLUMNS["fgsm"], version=2))
    evaluate_model(vit, source, CHEAP, progress=False)
    assert {p.column for p in counted} == {"fgsm"}
    assert {name for name, column in COLUMNS.items() if column.version != 1} == {"fgsm", "patchfool", "autoattack"}


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_parts(vit, source, counted, world, monkeypatch, tmp_path):
    """Each rank with a store of its own, so that nothing is shared but what is gathered."""
    single = evaluate_model(vit, source, CHEAP, progress=False)
    counted.clear()
    lists = []
    for rank in range(world):
        monkeypatch.setenv("NSLIB_STORE", str(tmp_path / f"rank{rank}"))
        with pytest.raises(KeyError):  # the others' parts are missing
            evaluate_model(vit, source, CHEAP, share=Share(rank, world, gather=lambda own: lists.append(own) or own))
    assert len(counted) == len(set(counted)) == 9
    together = [item for own in lists for item in own]
    joined = evaluate_model(vit, source, CHEAP, share=Share(0, world, gather=lambda own: together))
    for column in CHEAP.columns:
        assert joined.hits[column][""].tolist() == single.hits[column][""].tolist()


@pytest.mark.slow
def test_torchrun_gives_the_same_numbers(tmp_path):
    options = ["evaluate", "--columns", "clean,fgsm,c", "--device", "cpu", "--set", "suite.images=6", "suite.batch=4"]

    def run(launcher, name):
        out = tmp_path / f"{name}.csv"
        environment = {"NSLIB_STORE": str(tmp_path / name), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
        command = [sys.executable, *launcher, "-m", "nslib", *options, "--out", str(out)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr[-2000:]
        return pd.read_csv(out), done.stdout

    alone, _ = run([], "alone")
    both, printed = run(["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"], "both")
    pd.testing.assert_frame_equal(alone, both)
    assert printed.count("corruption error") == 1  # one rank prints


def test_transferred_images_are_made_once_for_all_models(vit, source, surrogate, monkeypatch):
    made = []
    transfer = bench_module.transfer_set
    monkeypatch.setattr(bench_module, "transfer_set", lambda *a, **k: (made.append(1), transfer(*a, **k))[1])
    suite = replace(SUITE, columns=("damagenet",))
    evaluate_model(vit, source, suite, surrogate=surrogate, progress=False)
    evaluate_model(make_vit(seed=3), source, suite, surrogate=surrogate, progress=False)
    assert len(made) == 3  # three batches
    evaluate_model(vit, source, replace(suite, transfer_eps=0.1), surrogate=surrogate, progress=False)
    assert len(made) == 6
    torch.manual_seed(1)
    evaluate_model(vit, source, suite, surrogate=SurrogateCNN(10, 32).eval(), progress=False)
    assert len(made) == 9


def test_transferred_images_keep_the_budget_on_the_8_bit_grid(vit, source, surrogate):
    bench = Bench(vit, source, SUITE, surrogate)
    clean = bench.take("val", 0, 4).images
    shown, _ = bench.transferred(0, 4)
    change = (shown - clean).abs()
    assert change.max() <= SUITE.transfer_eps + 1e-6
    assert change.max() > SUITE.transfer_eps / 2
    assert torch.equal(shown, (shown * 255).round() / 255)


@pytest.mark.parametrize("levels", [1.6, 2.55, 3])
def test_a_budget_between_two_levels_is_kept_too(vit, source, surrogate, levels):
    bench = Bench(vit, source, replace(SUITE, transfer_eps=levels / 255), surrogate)
    change = 255 * (bench.transferred(0, 4).images - bench.take("val", 0, 4).images).abs()
    assert change.max().item() == pytest.approx(math.floor(levels), abs=1e-3)


def test_a_budget_below_a_level_is_refused(vit, source, surrogate):
    with pytest.raises(ValueError, match=r"transfer_eps must be 0, or >= 1/255, .* got 0\.00156"):
        Bench(vit, source, replace(SUITE, transfer_eps=0.4 / 255), surrogate)


def test_without_surrogate_or_folder_a_column_is_missing(vit, source):
    found = evaluate_model(vit, source, replace(CHEAP, columns=("clean", "damagenet")), progress=False)
    assert "surrogate" in found.missing["damagenet"]
    assert list(found.hits) == ["clean"]
    table = found.table().set_index("column")
    assert "surrogate" in table.missing["damagenet"]
    assert np.isnan(table.value["damagenet"])


def test_masked_classes_are_not_answered(vit, source):
    """On the two classes that may be answered every logit but theirs is out, and clean images stand beside them."""
    masked = Masked(source, classes=[2, 5])
    bench = Bench(vit, masked, SUITE)
    images, labels = masked.take("a", 10)
    logits = bench.logits(images, "a")
    assert set(logits.argmax(1).tolist()) <= {2, 5}
    assert bench.logits(images, "val").isfinite().all()
    found = evaluate_model(vit, masked, replace(CHEAP, columns=("a",)), progress=False)
    assert list(found.hits) == ["a", "clean_a"]
    assert found.hits["a"][""].tolist() == (logits.argmax(1) == labels).tolist()


def test_differences_and_row(vit, source):
    suite = replace(CHEAP, columns=("clean", "c"), images=4)
    base = replace(evaluate_model(vit, source, suite, progress=False), model="plain")
    ours = evaluate_model(make_vit(seed=1), source, suite, progress=False)
    table = differences(ours, base).set_index("column")
    expected = ours.estimate("clean").value - base.estimate("clean").value
    assert table.difference["clean"] == pytest.approx(expected)
    assert np.isnan(table["ratio to plain"]["clean"])
    assert table["ratio to plain"]["c"] == pytest.approx(corruption_ratio(ours.hits["c"], base.hits["c"]))
    row = table2_row(base)
    assert list(row) == ["clean", "c", "average"]
    assert row["average"] == pytest.approx((row["clean"] + 100 - row["c"]) / 2)


def test_a_table_says_what_was_made_here(vit, source, surrogate):
    suite = replace(SUITE, columns=("clean", "c", "damagenet"), images=2)
    found = evaluate_model(vit, source, suite, surrogate=surrogate, progress=False)
    origin = found.table().set_index("column").source.to_dict()
    assert origin == {"clean": "", "c": "made here", "damagenet": "made here on the surrogate"}


@pytest.mark.parametrize(
    ("column", "architecture", "why"),
    [
        ("autoattack", {"num_classes": 3}, "AutoAttack needs 4 classes: vit_tiny_patch16_224 has 3"),
        (
            "patchfool",
            {"block_fn": ParallelScalingBlock},
            "Patch-Fool needs timm's standard Attention, which vit_tiny_patch16_224 has not",
        ),
        (
            "c",
            {"img_size": 28, "patch_size": 14},
            "corruptions need images of at least 32 px: vit_tiny_patch16_224 takes 28",
        ),
    ],
)
def test_a_column_that_a_model_cannot_show_is_missing(column, architecture, why):
    model = make_vit(**architecture)
    own = open_source(DataConfig(), model)
    suite = replace(SUITE, columns=("clean", column), images=2, costly_images=2)
    assert columns_module.missing_of(column, Bench(model, own, suite)) == why


def test_corruptions_need_three_channels(source):
    torch.manual_seed(0)
    grey = VisionTransformer(img_size=32, in_chans=1, embed_dim=24, depth=1, num_heads=2, num_classes=10)
    bench = Bench(StagedViT(grey, mean=(0.5,), std=(0.5,)).eval(), source, SUITE)
    assert columns_module.missing_of("c", bench) == "corruptions are of three channels: custom takes 1"


@pytest.mark.parametrize(
    ("column", "library"), [("autoattack", "pyautoattack"), ("cw", "foolbox"), ("c", "imagecorruptions")]
)
def test_without_its_library_a_column_is_missing(vit, source, monkeypatch, column, library):
    monkeypatch.setattr(columns_module, "find_spec", lambda name: None if name == library else object())
    found = evaluate_model(vit, source, replace(CHEAP, columns=("clean", column)), progress=False)
    assert list(found.hits) == ["clean"]
    assert found.missing == {column: f"{library} is not installed: pip install 'nslib[attacks]'"}
    assert found.absent(column) == found.missing[column]
    assert found.absent("fgsm") == "fgsm is not among suite.columns"
    assert found.absent("clean") == ""


def test_dry_run_counts_without_attacking(vit, source, surrogate, counted):
    plan = dry_run(Bench(vit, source, replace(SUITE, columns=("clean", "pgd", "c", "cw")), surrogate))
    plan = plan.set_index("column")
    assert counted == []
    assert plan.images.to_dict() == {"clean": 10, "pgd": 10, "c": 10, "cw": 4}
    assert plan["forward passes"].to_dict() == {"clean": 10, "pgd": 10 * 7, "c": 10 * 75, "cw": 4 * 6 * 3 * 3}
    assert plan.minutes.gt(0).all()


def test_dry_run_needs_no_images(vit, source):
    """Nor the corruptions, unless column c is asked for."""
    source.take = None
    plan = dry_run(Bench(vit, source, replace(SUITE, columns=("v2",))))
    assert plan.images.tolist() == [10]


def test_authors_protocol_by_hand(vit):
    """Normalised, clipped to [0, 1], attacked there, and back: with eps = 0 only the clipping is left."""
    images, labels = render("val", range(4), size=32)
    clipped = attack_normalised(vit, images, labels, lambda model, x, y: fgsm(model, x, y, eps=0.0))
    expected = ((images - vit.mean) / vit.std).clamp(0, 1) * vit.std + vit.mean
    assert torch.allclose(clipped, expected)
    assert not torch.allclose(clipped, images)
    moved = attack_normalised(vit, images, labels, lambda model, x, y: fgsm(model, x, y, eps=0.1))
    assert ((moved - clipped).abs() <= 0.1 * vit.std + 1e-6).all()


def test_authors_protocol_lowers_accuracy_without_an_attack(source):
    model = load_model()
    source = open_source(DataConfig(), model)
    suite = SuiteConfig(images=64, columns=("clean", "fgsm"), fgsm_eps=0.0)
    honest = evaluate_model(model, source, suite, progress=False)
    authors = evaluate_model(model, source, replace(suite, protocol="authors"), progress=False)
    assert honest.hits["fgsm"][""].tolist() == honest.hits["clean"][""].tolist()
    assert authors.estimate("fgsm").value < honest.estimate("fgsm").value - 10


def test_nan_logits_name_column_and_images(vit, source):
    broken = make_vit()
    with torch.no_grad():
        broken.vit.head.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"column clean, images 0 to 4: .* NaN logits"):
        evaluate_model(broken, source, CHEAP, progress=False)
    with pytest.raises(FloatingPointError, match="column c gaussian_noise, images 0 to 4"):
        evaluate_model(broken, source, replace(CHEAP, columns=("c",)), progress=False)


def test_training_mode_is_refused(vit, source):
    with pytest.raises(ValueError, match="training mode"):
        evaluate_model(vit.train(), source, CHEAP, progress=False)


def test_labels_that_are_no_classes(vit, source):
    for column in ("clean", "fgsm"):
        with pytest.raises(ValueError, match=f"column {column}, images 0 to 4: labels"):
            evaluate_model(vit, Masked(source, labels=10), replace(CHEAP, columns=(column,)), progress=False)


def test_unknown_column(vit, source):
    with pytest.raises(ValueError, match=r"no column 'clan': there are clean, patchfool"):
        evaluate_model(vit, source, replace(CHEAP, columns=("clan",)), progress=False)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("fgsm_eps", 8.0, r"in \[0, 1\], 8-bit levels divided by 255, got 8.0"),
        ("pgd_eps", -0.1, r"in \[0, 1\]"),
        ("transfer_eps", 16.0, "divided by 255"),
        ("patchfool_bound", 8.0, "divided by 255"),
        ("patchfool_patches", 0, ">= 1"),
        ("cw_budget", -1.0, ">= 0"),
        ("images", 0, ">= 1"),
        ("protocol", "paper", "pixels or authors"),
    ],
)
def test_wrong_settings(setting, value, message):
    with pytest.raises(ValueError, match=message):
        SuiteConfig(**{setting: value})


def test_surrogates_that_do_not_fit(vit, source, surrogate):
    with pytest.raises(ValueError, match=r"knows 7 classes, .* 10"):
        Bench(vit, source, SUITE, SurrogateCNN(7, 32).eval())
    with pytest.raises(ValueError, match="training mode"):
        Bench(vit, source, SUITE, surrogate.train())
    with pytest.raises(ValueError, match=r"takes images \(3, 48, 48\)"):
        Bench(vit, source, SUITE, make_vit(img_size=48))
    grey = StagedViT(
        VisionTransformer(img_size=32, in_chans=1, embed_dim=24, depth=1, num_heads=2, num_classes=10, patch_size=8),
        mean=(0.5,), std=(0.5,),
    ).eval()  # fmt: skip
    with pytest.raises(ValueError, match=r"takes coloured images, .* 1 channels: name another, or none"):
        Bench(grey, source, SUITE, surrogate.eval())


def test_more_patches_than_there_are_are_refused_before_any_column(vit, source):
    """Where they are asked for: another suite may say what it likes of a column that it has not."""
    suite = replace(SUITE, columns=("clean", "patchfool"), patchfool_patches=5)
    with pytest.raises(ValueError, match="patchfool_patches must be at most 4, all patches of vit_tiny_patch"):
        Bench(vit, source, suite)
    Bench(vit, source, replace(suite, columns=("clean",)))


def test_a_column_that_was_not_measured_has_no_figure(vit, source):
    found = evaluate_model(vit, source, replace(SUITE, columns=("clean", "damagenet")), progress=False)
    with pytest.raises(ValueError, match=r"no figure for fgsm: fgsm is not among suite\.columns"):
        found.estimate("fgsm")
    with pytest.raises(ValueError, match=r"no figure for damagenet: .*surrogate"):
        found.reported("damagenet")
    with pytest.raises(ValueError, match="no figure for cue_conflict"):
        found.decisions()


def test_carlini_wagner_counts_within_its_budget(vit, source, monkeypatch):
    images = source.take("val", 4).images
    found = Nearest(1 - images, torch.tensor([0.0, 1.0, 1.01, torch.inf]))
    monkeypatch.setattr(columns_module, "carlini_wagner", lambda *a, **k: found)
    bench = Bench(vit, source, replace(SUITE, cw_budget=1.0))
    (view,) = COLUMNS["cw"].show(bench, parts_of("cw", bench)[0])
    assert torch.equal(view.images, torch.cat([found.images[:2], images[2:]]))


def test_attacks_are_asked_for_as_it_is_said(source, monkeypatch):
    """PGD in steps of a quarter of its budget, Patch-Fool by the attention of block 4."""
    asked, deep = {}, make_vit(depth=6)
    for name in ("fgsm", "pgd", "patch_fool"):
        monkeypatch.setattr(columns_module, name, lambda m, x, y, name=name, **k: asked.setdefault(name, k) and x)
    bench = Bench(deep, source, SUITE)
    for column in ("fgsm", "pgd", "patchfool"):
        hits_of(bench, parts_of(column, bench)[0])
    assert asked["fgsm"] == {"eps": SUITE.fgsm_eps}
    assert asked["pgd"] == {"eps": SUITE.pgd_eps, "step": SUITE.pgd_eps / 4, "steps": 2}
    del asked["patch_fool"]["generator"]
    expected = {"layer": 4, "patches": SUITE.patchfool_patches, "bound": SUITE.patchfool_bound, "steps": 2}
    assert asked["patch_fool"] == expected


def test_corrupted_images_keep_their_numbers_in_every_part(vit, source):
    bench = Bench(vit, source, replace(SUITE, seed=73))
    whole = corrupt(source.take("val", 8).images, "gaussian_noise", 3, indices=range(8), seed=73)
    assert torch.allclose(bench.corrupted("gaussian_noise", 3, 4, 8).images, whole[4:])
