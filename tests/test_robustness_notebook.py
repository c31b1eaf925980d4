"""Notebook 06 where columns are missing, and what it calls: curves, their sanity table, examples, printed tables."""

import json
import os
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, random_images, real_folder

import nslib.analysis.attack_curves as attack_curves_module
from nslib.analysis.attack_curves import (
    attack_curves,
    complaints,
    pgd_curve,
    pgd_hits,
    random_signs,
    right,
    sanity_table,
)
from nslib.attacks.gradient import pgd
from nslib.config import TABLE2, DataConfig, SuiteConfig
from nslib.data.shapes import render
from nslib.data.source import open_source
from nslib.evaluate.bench import Bench
from nslib.evaluate.columns import hits_of, parts_of
from nslib.evaluate.comparison import compare_protocols
from nslib.evaluate.cue import cue_conflict_table
from nslib.evaluate.examples import column_examples
from nslib.evaluate.suite import Evaluation
from nslib.intervals import share_estimate
from nslib.models import load_model
from nslib.profiles import resolve
from nslib.report.record import Record
from nslib.report.reference import QUOTED, beside_table2, printed
from nslib.runtime import generator
from nslib.study.experiment import open_bench, open_surrogate

SUITE = SuiteConfig(images=6, costly_images=3, batch=3, columns=("clean", "fgsm", "c", "a"))


@pytest.fixture
def bench(vit):
    return Bench(vit, open_source(DataConfig(), vit), SUITE)


def test_curves(vit):
    images = random_images(vit, 12)
    with torch.no_grad():
        labels = vit(images).argmax(1)
    table = attack_curves(vit, images, labels, (0.0, 0.5), steps=3, seed=0)
    assert table.attack.unique().tolist() == ["random signs", "FGSM", "PGD"]
    assert (table[table.eps == 0].value == 100).all()  # the labels are the model's own
    assert (table.n == 12).all()
    fgsm = table[(table.attack == "FGSM") & (table.eps == 127.5)].value.item()
    assert fgsm < 100
    alone = pgd_curve(vit, images, labels, (0.0, 0.5), steps=3)
    pgd = table[table.attack == "PGD"].drop(columns="attack").reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, pgd)


def test_no_curve_of_a_model_in_training_mode_is_kept(vit):
    """Random signs need no gradient, and are the first: they would be of dropout, and stay in the store."""
    with pytest.raises(ValueError, match="is in training mode"):
        attack_curves(vit.train(), random_images(vit, 2), torch.zeros(2, dtype=torch.int64), (0.1,), steps=1, seed=0)
    assert not (Path(os.environ["NSLIB_STORE"]) / "strength").exists()


def test_no_two_batches_have_the_same_signs(vit, monkeypatch):
    """And the same ones again when the curves are made again."""
    images, labels, seen = random_images(vit, 4), torch.zeros(4, dtype=torch.int64), []
    right = attack_curves_module.right
    monkeypatch.setattr(attack_curves_module, "_BATCH", 2)
    monkeypatch.setattr(attack_curves_module, "right", lambda *a: (seen.append(a[1]), right(*a))[1])
    for place in ("one", "two"):
        monkeypatch.setenv("NSLIB_STORE", f"{os.environ['NSLIB_STORE']}/{place}")
        attack_curves(vit, images.clone().fill_(0.5), labels, (0.1,), steps=1, seed=0)
    first, second, *_ = seen
    assert not torch.equal(first, second)
    assert torch.equal(first, seen[len(seen) // 2])


def test_random_signs():
    images = torch.full((2, 3, 8, 8), 0.5)
    moved = random_signs(images, 0.1, generator(0))
    assert torch.allclose((moved - images).abs(), torch.tensor(0.1))
    assert 0.3 < (moved > images).float().mean() < 0.7
    assert torch.equal(moved, random_signs(images, 0.1, generator(0)))
    assert random_signs(images, 0.9, generator(0)).max() == 1
    with pytest.raises(ValueError, match="divide 8-bit levels by 255"):
        random_signs(images, 8, generator(0))


def falling(**changes) -> pd.DataFrame:
    values = {"random signs": [90, 90, 88], "FGSM": [90, 60, 30], "PGD": [90, 50, 0]} | changes
    return pd.DataFrame(
        {"attack": a, "eps": e, "value": v, "low": v - 3, "high": v + 5, "n": 40}
        for a, row in values.items()
        for e, v in zip((0, 1, 8), row, strict=True)
    )


def test_sanity_of_attacks_that_work():
    table = sanity_table(falling(), np.array([0, 0, 1], bool), np.array([0, 1, 1], bool))
    assert table.holds.all()
    assert len(table) == 6
    assert table.n.tolist() == [40] * 5 + [3]


def test_sanity_has_intervals():
    table = sanity_table(falling(), np.array([0, 0, 1], bool), np.array([0, 1, 1], bool)).set_index("check")
    means = table.loc["PGD is no weaker than FGSM: means over eps"]
    assert (means.left, means.left_low, means.left_high) == pytest.approx((140 / 3, 140 / 3 - 3, 140 / 3 + 5))
    assert (means.right, means.right_low, means.right_high) == (60, 57, 65)
    limit = table.loc["PGD reaches 0: at the largest eps, limit"]
    assert limit.right == 2
    assert np.isnan(limit.right_low)
    auto, wilson = table.loc["AutoAttack is no weaker than PGD"], share_estimate([0, 0, 1])
    assert (auto.left, auto.left_low, auto.left_high) == pytest.approx((100 / 3, 100 * wilson.low, 100 * wilson.high))


def test_sanity_without_autoattack():
    table = sanity_table(falling())
    assert len(table) == 5
    assert not table.check.str.contains("AutoAttack").any()


@pytest.mark.parametrize(
    ("line", "changes", "auto"),
    [
        (0, {"FGSM": [85, 60, 30]}, [0, 0, 1]),
        (1, {"PGD": [90, 95, 0]}, [0, 0, 1]),
        (2, {"PGD": [90, 50, 10]}, [0, 0, 1]),
        (3, {"PGD": [90, 70, 0]}, [0, 0, 1]),
        (4, {"random signs": [90, 40, 20]}, [0, 0, 1]),
        (5, {}, [1, 1, 1]),
    ],
)
def test_sanity_notices(line, changes, auto):
    table = sanity_table(falling(**changes), np.array(auto, bool), np.array([0, 1, 1], bool))
    assert not table.holds[line]


@pytest.mark.parametrize(
    ("changes", "weak", "either"),
    [
        ({}, "", ""),
        ({"PGD": [90, 95, 0]}, "PGD falls with eps: largest, smallest eps: 0.0, 95.0 %", ""),
        ({"PGD": [60, 50, 38], "FGSM": [60, 52, 44], "random signs": [60, 60, 58]}, "", "PGD reaches 0: .* 38.0, 2"),
        ({"PGD": [90, 50, 45], "random signs": [90, 60, 60]}, "PGD is no weaker", "PGD reaches 0.*; random signs"),
    ],
)
def test_a_robust_model_is_told_from_a_weak_attack_where_that_can_be(changes, weak, either):
    """The third's figures are of the size that adversarially trained models have."""
    for found, asked in zip(complaints(sanity_table(falling(**changes))), (weak, either), strict=True):
        assert re.match(asked, found) if asked else found == ""


def test_the_attacks_work_on_the_shipped_model():
    images, labels = render("val", range(24))
    curves = attack_curves(load_model(), images, labels, (0, 1 / 255, 16 / 255), steps=10, seed=0)
    assert complaints(sanity_table(curves)) == ("", "")


def test_right_is_top1(vit):
    images = random_images(vit, 5)
    with torch.no_grad():
        answers = vit(images).argmax(1)
    wrong = (answers + 1) % 10
    assert right(vit, images, torch.where(torch.arange(5) < 2, answers, wrong)).tolist() == [True] * 2 + [False] * 3


def test_pgd_hits_are_those_of_the_attack(vit):
    images = random_images(vit, 6)
    with torch.no_grad():
        labels = vit(images).argmax(1)
    attacked = pgd(vit, images, labels, eps=0.2, step=0.05, steps=3)
    assert pgd_hits(vit, images, labels, eps=0.2, steps=3).tolist() == right(vit, attacked, labels).tolist()
    assert pgd_hits(vit, images, labels, eps=0.0, steps=1).all()


def test_examples_are_what_the_columns_show(bench):
    examples = column_examples(bench, 3)
    assert list(examples) == list(SUITE.columns)
    for name in ("clean", "fgsm", "a"):
        images, labels, predictions = examples[name]
        assert images.shape == (3, 3, 32, 32)
        part = parts_of(name, bench)[0]
        assert (predictions == labels).tolist() == hits_of(bench, part)[""].tolist()
    foggy = hits_of(bench, next(p for p in parts_of("c", bench) if p.corruption == "fog"))["fog/3"]
    assert (examples["c"].predictions == examples["c"].labels).tolist() == foggy.tolist()


def test_protocols_side_by_side(bench):
    table = compare_protocols(bench, (0.0, 4 / 255), images=6)
    assert table.eps.tolist() == ["0/255", "4/255"]
    assert (table.n == 6).all()
    for protocol in ("pixels", "authors"):
        assert table[f"{protocol}_low"].ge(0).all()
        assert (table[f"{protocol}_low"] <= table[protocol]).all()
        assert (table[protocol] <= table[f"{protocol}_high"]).all()
        assert table[f"{protocol}_high"].le(100).all()


def test_printed_tables():
    assert printed("table3").model.tolist() == ["ViT-S", "ViT-S + Madry", "ViT-S + TRADES", "ViT-S + NS"]
    ours, theirs = printed("table3").set_index("model").loc["ViT-S"], printed("table2").set_index("model").loc["ViT-S"]
    assert (ours == theirs[ours.index].astype(float)).all()  # printed twice in the paper
    assert len(printed("table4")) == 6
    assert printed("table5").mse_probability.max() < 0.03
    with pytest.raises(FileNotFoundError, match=r"no printed table 'table9': there are table1, table2, .*, figure4"):
        printed("table9")


def test_our_row_beside_theirs():
    hits = {c: {"": np.array([True, False])} for c in TABLE2 if c != "c"}
    table = beside_table2(Evaluation("vit", hits))
    assert table.model[0] == "vit"
    assert table.clean[0] == 50
    assert np.isnan(table.c[0])
    assert np.isnan(table["corruption error"][0])
    assert np.isnan(table.average[0])  # of other columns than the printed average
    assert table.model[1] == "ViT-S"
    source = table.set_index("model").source
    assert (source["vit"], source["ViT-S + NS"], source["ViT-B + SAM"]) == ("ours", "printed", "printed")
    assert sorted(source.index[source == "quoted"]) == sorted(QUOTED)


def test_bench_of_settings(monkeypatch):
    settings = resolve("smoke")
    bench = open_bench(settings)
    assert bench.missing("damagenet") == ""
    assert bench.suite == settings.suite
    assert open_surrogate(resolve("smoke", overrides={"surrogate": ""}), bench.model) is None


def test_surrogate_that_cannot_be_had(vit):
    settings = resolve("smoke", overrides={"surrogate_weights": "nowhere.safetensors"})
    with pytest.warns(UserWarning, match=r"no transferred images: no weights at nowhere"):
        assert open_surrogate(settings, vit) is None


def test_cue_conflict_is_missing_on_shapes(bench):
    table = cue_conflict_table(bench)
    assert table.decision.tolist() == ["missing"]
    assert "cue_conflict" in table.reason[0]


@pytest.mark.real
def test_cue_conflict_of_a_real_model():
    """The shares of Geirhos' protocol that are known of the pretrained ViT-Ti, within two of 320 images."""
    root, weights = real_folder("NSLIB_IMAGENET"), real_folder("NSLIB_WEIGHTS")
    model = load_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k", weights)
    source = open_source(DataConfig(kind="folder", root=str(root)), model)
    table = cue_conflict_table(Bench(model, source, SuiteConfig(batch=64))).set_index("decision")
    assert table.images.sum() == 320
    assert abs(table.images["shape"] - 0.169 * 320) <= 2
    assert abs(table.images["texture"] - 0.428 * 320) <= 2


def test_shipped_surrogate_is_for_its_own_size(vit):
    with pytest.warns(UserWarning, match=r"no transferred images: the shipped surrogate_cnn is for 48 px, .* takes 32"):
        assert open_surrogate(resolve("smoke"), vit) is None


def test_no_surrogate_is_fetched_for_other_classes(vit, monkeypatch):
    monkeypatch.setattr("nslib.study.experiment.load_model", lambda *a, **k: pytest.fail("fetched"))
    settings = resolve("imagenet_small", overrides={"data.root": "x", "surrogate_weights": "pretrained"})
    assert vit.num_classes == 10
    assert open_surrogate(settings, vit) is None


def test_a_cell_that_is_run_twice_writes_its_files_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("NSLIB_FIGURES", str(tmp_path))
    record = Record("06_robustness", resolve("smoke"))
    record.table("table2", pd.DataFrame({"a": [1]}))
    with pytest.warns(UserWarning, match=r"06_robustness_table2\.csv is written anew: were it another cell's") as told:
        record.table("table2", pd.DataFrame({"a": [2]}))
    assert told[0].filename == __file__
    assert record.save()["files"] == ["06_robustness_table2.csv"]
    assert (tmp_path / "smoke" / "06_robustness_table2.csv").read_text() == "a\n2\n"


def test_the_notebook_says_what_is_missing(monkeypatch, tmp_path, capsys):
    """Without pyautoattack, surrogate and column c it shows the rest."""
    monkeypatch.setenv("NSLIB_FIGURES", str(tmp_path))
    monkeypatch.setattr("nslib.evaluate.columns.find_spec", lambda library: None)
    few = {
        "suite.columns": ["clean", "fgsm", "damagenet", "autoattack"],
        "surrogate": "",
        "finetuning.objectives": ["nullspace", "plain"],
        "finetuning.columns": ["clean", "fgsm", "damagenet"],
        "finetune.rounds": 1,
        "finetune.steps": 1,
        "finetune.noise.eps": 2.0,
        "robustness.eps": [0.0, 1 / 255, 16 / 255],
    }
    code = (ROOT / "paper_nb" / "06_robustness.py").read_text().replace("overrides = {}", f"overrides = {few}")
    exec(compile(code, "06_robustness.py", "exec"), cells := {})
    plt.close("all")
    assert "AutoAttack: pyautoattack is not installed" in capsys.readouterr().out
    record = json.loads((tmp_path / "smoke" / "records" / "06_robustness.json").read_text())
    assert set(record["facts"]["missing"]) == {"damagenet", "autoattack"}
    assert cells["finetuned"].columns.tolist() == ["model", "seeds", "clean", "fgsm", "mean", "missed_eps", "note"]
    assert cells["table2"].model.tolist()[:4] == ["shapes_vit, suite, n = 64", "base", "nullspace", "plain"]
    assert record["facts"]["missed_eps"] == {"nullspace": 0}
    assert list(cells["examples"]) == ["clean", "fgsm"]
    assert not list(tmp_path.rglob("*corruptions*"))
    assert cells["base"].absent("c") == "c is not among suite.columns"


@pytest.mark.slow
def test_the_notebook_at_gpu_has_rows_of_its_second_model(monkeypatch, tmp_path):
    """The path of the profile on a CPU: two models trained from scratch, bfloat16, each run kept in a file."""
    monkeypatch.setenv("NSLIB_FIGURES", str(tmp_path))
    models = ["vit_tiny_patch16_224", "vit_small_patch16_224"]
    few = {
        "models": models,
        "device": "cpu",
        "pretrain.size": 32,
        "pretrain.steps": 1,
        "pretrain.batch": 4,
        "pretrain.images": 8,
        "pretrain.report_images": 4,
        "surrogate": "",
        "suite.columns": ["clean", "fgsm"],
        "suite.images": 16,
        "suite.costly_images": 2,
        "robustness.eps": [0.0, 1 / 255, 16 / 255],
        "robustness.images": 8,
        "robustness.authors_images": 8,
        "finetune.precision": "bfloat16",
        "finetune.rounds": 1,
        "finetune.steps": 1,
        "finetune.batch": 4,
        "finetune.pool": 16,
        "finetune.heldout": 8,
        "finetune.noise.steps": 2,
        "finetune.noise.eps": 2.0,
        "finetuning.objectives": ["nullspace", "plain"],
        "finetuning.seeds": 2,
        "finetuning.columns": ["clean", "fgsm"],
        "finetuning.images": 16,
        "finetuning.trace_images": 8,
    }
    code = (ROOT / "paper_nb" / "06_robustness.py").read_text().replace("overrides = {}", f"overrides = {few}")
    code = code.replace('profile = "smoke"', 'profile = "gpu"')
    code = re.sub(r"^assert .*\n", "", code, flags=re.M)  # of attacks on models that know nothing
    exec(compile(code, "06_robustness.py", "exec"), cells := {})
    plt.close("all")
    names = cells["table2"].model[cells["table2"].source == "ours"].tolist()
    assert names[1:] == [
        "base",
        "nullspace",
        "plain",
        *(f"{models[1]} {row}" for row in ("base", "plain", "nullspace")),
    ]
    kept = sorted(path.stem for path in (tmp_path / "gpu" / "records" / "jobs").glob("*.json"))
    second = [f"{models[1]}_{row}" for row in ("base_seed0_row", "nullspace_seed0", "plain_seed0")]
    first = [f"{models[0]}_{o}_seed{seed}" for o in ("nullspace", "plain") for seed in range(2)]
    assert kept == [*second, f"{models[0]}_base_seed0_row", *first]


def test_pgd_takes_steps_of_a_quarter_of_its_budget(vit, monkeypatch):
    asked = []
    monkeypatch.setattr(attack_curves_module, "pgd", lambda m, x, y, **k: asked.append(k) or x)
    pgd_curve(vit, random_images(vit, 2), torch.zeros(2, dtype=torch.int64), (0.0, 0.2), steps=7)
    assert asked == [{"eps": 0.0, "step": 0.0, "steps": 7}, {"eps": 0.2, "step": 0.05, "steps": 7}]
