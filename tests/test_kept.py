"""Results kept as files: read back bit by bit, computed anew when an input changes, never half written."""

import json
from dataclasses import replace

import numpy as np
import pytest
from test_trials import TINY

from nslib import jobs, search, trials
from nslib.config import DataConfig, FinetuneConfig, NoiseConfig, SuiteConfig
from nslib.data.source import open_source
from nslib.evaluate.bench import Bench
from nslib.evaluate.columns import COLUMNS
from nslib.evaluate.suite import Evaluation
from nslib.kept import kept, packed, rounded, unpacked

KEEPING = replace(TINY, run_name="kept", finetuning=replace(TINY.finetuning, keep=True))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NSLIB_FIGURES", str(tmp_path / "figures"))
    return tmp_path / "figures" / "kept" / "records" / "jobs"


@pytest.fixture
def bench(vit):
    return Bench(vit, open_source(DataConfig(), vit), TINY.suite)


@pytest.fixture
def path(folder):
    return folder / "one.json"


def test_hits_come_back_bit_by_bit():
    generator = np.random.default_rng(0)
    hits = {"clean": {"": generator.random(13) < 0.5}, "c": {f"fog/{s}": generator.random(8) < 0.5 for s in (1, 2)}}
    before = Evaluation("vit", hits, {"a": "no folder"})
    after = unpacked(json.loads(json.dumps(packed(before))))
    assert (after.model, after.missing, after.published_c) == ("vit", {"a": "no folder"}, False)
    for column, variants in hits.items():
        for variant, values in variants.items():
            assert after.hits[column][variant].tolist() == values.tolist()


def test_a_result_is_computed_once(path):
    calls = []

    def compute():
        calls.append(1)
        return {"value": 0.5}

    inputs = {"finetune": FinetuneConfig(), "weights": "abc"}
    assert kept(path, inputs, compute) == kept(path, inputs, compute) == {"value": 0.5}
    assert len(calls) == 1
    assert {"versions", "commit", "hardware", "config", "result"} <= set(json.loads(path.read_text()))
    kept(path, inputs | {"finetune": FinetuneConfig(noise=NoiseConfig(eps=0.1))}, compute)
    kept(path, inputs | {"finetune": FinetuneConfig(noise=NoiseConfig(eps=0.1)), "weights": "other"}, compute)
    assert len(calls) == 3
    kept(None, inputs, compute)
    assert len(calls) == 4


def test_a_setting_that_came_later_counts_as_its_default(path):
    inputs = {"finetune": FinetuneConfig(), "suite": SuiteConfig()}
    kept(path, inputs, lambda: {"value": 1})
    record = json.loads(path.read_text())
    del record["config"]["finetune"]["groups"], record["config"]["finetune"]["noise"]["stop_on"]
    del record["config"]["suite"]["c_images"]
    path.write_text(json.dumps(record))
    assert kept(path, inputs, lambda: {"value": 2}) == {"value": 1}
    assert kept(path, inputs | {"suite": SuiteConfig(c_images=5)}, lambda: {"value": 3}) == {"value": 3}


def test_a_damaged_file_is_named(path):
    kept(path, {}, lambda: {"value": 1})
    path.write_text(path.read_text()[:40])
    with pytest.raises(ValueError, match=r"one\.json is damaged .*: remove it to compute it anew"):
        kept(path, {}, lambda: {"value": 2})


def test_a_failure_keeps_nothing(path):
    with pytest.raises(KeyboardInterrupt):
        kept(path, {}, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert not path.exists()


def test_numbers_are_rounded_to_six_digits():
    assert rounded({"a": [1 / 3, 12345678, "x", None, True]}) == {"a": [0.333333, 12345678, "x", None, True]}


def test_a_run_comes_from_its_file_without_its_weights(bench, folder, monkeypatch, tmp_path):
    first = jobs.run(bench, KEEPING, "nullspace")
    (file,) = folder.iterdir()
    assert file.name == f"{bench.model.name}_nullspace_seed0.json"
    assert file.stat().st_size < 100_000
    monkeypatch.setenv("NSLIB_STORE", str(tmp_path / "another"))
    monkeypatch.setattr(jobs, "finetuned", lambda *args, **kwargs: pytest.fail("trained again"))
    again = jobs.run(bench, KEEPING, "nullspace")
    assert [len(r.losses) for r in again.history] == [2, 2]
    assert again.cost == first.cost
    assert again.evaluation.hits["fgsm"][""].tolist() == first.evaluation.hits["fgsm"][""].tolist()


def test_a_change_has_a_file_of_its_own(bench, folder):
    jobs.run(bench, KEEPING, "plain", trainable="pos_embed")
    noise = replace(KEEPING.finetune.noise, eps=0.4)
    trials.row(bench, KEEPING, "random", noise=noise)
    names = {file.stem.removeprefix(f"{bench.model.name}_") for file in folder.iterdir()}
    assert names == {"plain_seed0_trainable-pos_embed", "random_seed0_noise.eps-0.4"}


def test_eps_sets_are_kept_too(bench, folder, monkeypatch):
    table = jobs.eps_set(bench, KEEPING, "plain", eps=0.03)
    monkeypatch.setattr(jobs, "reach_table", lambda *args, **kwargs: pytest.fail("measured again"))
    again = jobs.eps_set(bench, KEEPING, "plain", eps=0.03)
    assert again.equals(table)


def test_only_the_rows_of_the_study_are_repeated(bench, folder):
    settings = replace(KEEPING, finetuning=replace(KEEPING.finetuning, seeds=2))
    assert len(trials.seed_rows(bench, settings, "plain", lr=settings.finetune.lr)) == 2  # no change at all
    assert len(trials.seed_rows(bench, settings, "plain", lr=5e-4)) == 1
    assert len(trials.seed_rows(bench, settings, "plain", seeds=1)) == 1


def test_the_search_looks_at_val_alone(bench, folder):
    study = replace(KEEPING.finetuning, search_lr=(1e-3, 1e-4), search_eps=(0.5,), search_rounds=1, search_images=4)
    assert {COLUMNS[c].split for c in search.VAL} == {"val", "damagenet", "c"}  # the last two are made of val
    settings = replace(KEEPING, finetuning=study)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "VAL", ("clean", "fgsm"))
        table = search.settings_table(bench, settings)
    assert sorted(table[["lr", "eps"]].values.tolist()) == [[1e-4, 0.5], [1e-3, 0.5]]
    assert table.difference.is_monotonic_decreasing
    assert (table.low <= table.difference).all()
    assert search.settings_table(bench, replace(settings, finetuning=replace(study, search_lr=()))).empty
