"""Results kept as files: read back bit by bit, computed anew when an input changes, never half written."""

import json
from dataclasses import replace
from threading import Event, Thread, Timer

import numpy as np
import pytest
from test_trials import TINY

from nslib.config import DataConfig, FinetuneConfig, NoiseConfig, SuiteConfig
from nslib.data.source import open_source
from nslib.evaluate.bench import Bench
from nslib.evaluate.columns import COLUMNS
from nslib.evaluate.suite import Evaluation
from nslib.finetune.objectives import OBJECTIVES, Objective
from nslib.studies import ApproximateStudy
from nslib.study import beside, jobs, search, trials
from nslib.study.kept import kept, packed, rounded, unpacked

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


def test_what_is_kept_needs_no_store(path, tmp_path, monkeypatch):
    (tmp_path / "a file").touch()
    kept(path, {"a": 1}, lambda: {"b": 2})
    monkeypatch.setenv("NSLIB_STORE", str(tmp_path / "a file"))
    assert kept(path, {"a": 1}, lambda: pytest.fail("computed again")) == {"b": 2}
    with pytest.raises(OSError, match="no results can be kept in"):
        kept(path.with_name("two.json"), {"a": 1}, lambda: pytest.fail("computed what cannot be locked"))


def test_hits_come_back_bit_by_bit():
    generator = np.random.default_rng(0)
    hits = {"clean": {"": generator.random(13) < 0.5}, "c": {f"fog/{s}": generator.random(8) < 0.5 for s in (1, 2)}}
    before = Evaluation("vit", hits, {"a": "no folder"})
    after = unpacked(json.loads(json.dumps(packed(before), sort_keys=True)), ("c", "clean"))
    assert list(after.hits) == ["clean", "c"]  # as in every table
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
    kept(None, inputs, compute)
    assert len(calls) == 2


def test_a_result_of_other_inputs_is_not_overwritten(path):
    inputs = {"finetune": FinetuneConfig(), "weights": "abc"}
    kept(path, inputs, lambda: {"value": 1})
    changed = {"finetune": FinetuneConfig(noise=NoiseConfig(eps=0.1))}
    with pytest.raises(
        ValueError, match=r"one\.json .*inputs: finetune\.noise\.eps was 0\.03, is 0\.1; remove .* --run-name"
    ):
        kept(path, inputs | changed, lambda: {"value": 2})
    with pytest.raises(ValueError, match="weights was 'abc', is 'other'"):
        kept(path, inputs | {"weights": "other"}, lambda: {"value": 2})
    assert kept(path, inputs, lambda: {"value": 3}) == {"value": 1}


def test_a_setting_that_came_later_counts_as_its_default(path):
    suite = {"images": 7, "c_images": SuiteConfig().c_images}
    inputs = {"finetune": FinetuneConfig(), "suite": suite, "reach": ApproximateStudy()}
    kept(path, inputs, lambda: {"value": 1})
    record = json.loads(path.read_text())
    del record["config"]["finetune"]["groups"], record["config"]["finetune"]["noise"]["stop_on"]
    del record["config"]["suite"]["c_images"], record["config"]["reach"]["noise"]["stop_on"]
    path.write_text(json.dumps(record))
    assert kept(path, inputs, lambda: {"value": 2}) == {"value": 1}
    with pytest.raises(ValueError, match=r"suite\.c_images was 0, is 5"):
        kept(path, inputs | {"suite": {"images": 7, "c_images": 5}}, lambda: {"value": 3})


def test_what_was_kept_before_there_was_a_choice_searched_as_foolbox_does(path):
    kept(path, {"suite": {"cw_steps": 30}}, lambda: {"value": 1})
    assert kept(path, {"suite": {"cw_steps": 30, "cw_early_stop": True}}, lambda: {"value": 2}) == {"value": 1}
    with pytest.raises(ValueError, match=r"suite\.cw_early_stop was True, is False"):
        kept(path, {"suite": {"cw_steps": 30, "cw_early_stop": False}}, lambda: {"value": 3})


def test_a_copy_of_a_data_set_has_other_times_and_is_no_other_input(path):
    def inputs(files, times):
        return {"data": {"val": {"images": 2, "files": files, "times": times}}, "shown": [{"times": times}]}

    kept(path, inputs("abc", "first"), lambda: {"value": 1})
    assert "times" not in path.read_text()
    assert kept(path, inputs("abc", "copied"), lambda: {"value": 2}) == {"value": 1}
    with pytest.raises(ValueError, match=r"data\.val\.files: the images are others, have other names"):
        kept(path, inputs("other", "first"), lambda: {"value": 2})


def test_a_damaged_file_is_named(path):
    kept(path, {}, lambda: {"value": 1})
    path.write_text(path.read_text()[:40])
    with pytest.raises(ValueError, match=r"one\.json is damaged .*: remove it to compute it anew"):
        kept(path, {}, lambda: {"value": 2})


def test_what_was_measured_after_each_round_is_of_the_images_that_there_are(bench, monkeypatch):
    """It lies in the store with the model, which depends on train alone."""
    identity = type(bench).identity
    places = {}
    for where in ("here", "there"):
        changed = {"moved": where} if where == "there" else {}
        monkeypatch.setattr(type(bench), "identity",
                            lambda self, s, new=changed: identity(self, s) | (new if s == "val" else {}))  # fmt: skip
        places[where] = [jobs._target(bench, TINY, jobs.config_of(TINY, o)) for o in ("plain", "madry")]
    assert [a == b for a, b in zip(*places.values(), strict=True)] == [False, True]


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


def test_a_column_that_cannot_be_shown_is_no_part_of_the_key(bench, folder):
    columns = ("clean", "damagenet")
    jobs.run(bench, replace(KEEPING, finetuning=replace(KEEPING.finetuning, columns=columns)), "plain")
    (file,) = folder.iterdir()
    assert set(json.loads(file.read_text())["config"]["columns"]) == {"clean"}  # there is no surrogate


def test_settings_of_other_columns_do_not_matter(bench, folder, monkeypatch):
    jobs.run(bench, KEEPING, "plain")
    monkeypatch.setattr(jobs, "finetuned", lambda *args, **kwargs: pytest.fail("trained again"))
    jobs.run(bench, replace(KEEPING, suite=replace(KEEPING.suite, pgd_steps=3)), "plain")
    with pytest.raises(ValueError, match=r"suite\.fgsm_eps was"):
        jobs.run(bench, replace(KEEPING, suite=replace(KEEPING.suite, fgsm_eps=0.5)), "plain")


def test_settings_on_which_a_result_does_not_depend_do_not_matter(bench, folder, monkeypatch):
    measured = replace(KEEPING, robustness=replace(KEEPING.robustness, eps=(0.0,), images=6))
    jobs.run(bench, measured, "plain")
    beside.strength(bench, measured, "plain")
    beside.strength(bench, measured, "base")
    monkeypatch.setattr(jobs, "finetuned", lambda *args, **kwargs: pytest.fail("trained again"))
    monkeypatch.setattr(beside, "pgd_curve", lambda *args, **kwargs: pytest.fail("measured again"))
    other_noise = replace(measured.finetune, noise=replace(measured.finetune.noise, lr=0.5), groups=2)
    jobs.run(bench, replace(measured, finetune=other_noise), "plain")
    fewer = replace(measured, finetuning=replace(measured.finetuning, trace_images=3))
    beside.strength(bench, replace(fewer, suite=replace(measured.suite, batch=3, fgsm_eps=0.5)), "plain")
    beside.strength(bench, replace(measured, finetune=replace(measured.finetune, steps=3)), "base")
    with pytest.raises(ValueError, match=r"finetune\.steps was 2, is 3"):
        beside.strength(bench, replace(measured, finetune=replace(measured.finetune, steps=3)), "plain")


def test_files_that_name_more_than_a_result_depends_on_are_taken(bench, folder, monkeypatch):
    """As those written when settings that change nothing were inputs too."""
    jobs.run(bench, KEEPING, "plain")
    (file,) = folder.iterdir()
    record = json.loads(file.read_text())
    record["config"]["trace"]["batch"] = 99
    record["config"]["finetune"]["noise"]["lr"] = 0.7
    record["config"]["finetune"]["noise"]["eps"] = 0.7
    record["config"]["gone"] = {"x": 1}
    file.write_text(json.dumps(record))
    monkeypatch.setattr(jobs, "finetuned", lambda *args, **kwargs: pytest.fail("trained again"))
    jobs.run(bench, KEEPING, "plain")
    record["config"]["trace"], traced = None, record["config"]["trace"]
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"trace was None"):
        jobs.run(bench, KEEPING, "plain")
    record["config"]["trace"] = traced | {"images": 99}
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"trace\.images was 99"):
        jobs.run(bench, KEEPING, "plain")


def test_who_made_each_kept_result_is_told(bench, folder):
    assert jobs.provenance(KEEPING) == []
    jobs.run(bench, KEEPING, "plain")
    (made,) = jobs.provenance(KEEPING)
    assert made["job"] == f"{bench.model.name}_plain_seed0"
    assert {"commit", "versions", "threads", "made"} <= set(made)
    (file,) = folder.iterdir()
    half = file.with_name(f".{file.stem}.abcdefgh.partial.json")
    half.write_text("{")  # another process is writing, or was killed in it
    assert jobs.provenance(KEEPING) == [made]
    jobs.run(bench, KEEPING, "plain")
    assert not half.exists()  # nobody writes where the lock is held
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"_plain_seed0\.json is damaged .*: remove it to compute it anew"):
        jobs.provenance(KEEPING)


def test_strength_is_measured_once(bench, folder, monkeypatch):
    settings = replace(KEEPING, robustness=replace(KEEPING.robustness, eps=(0.0, 0.1), images=6))
    first = {o: beside.strength(bench, settings, o) for o in ("base", "plain")}
    assert {file.stem.removeprefix(f"{bench.model.name}_") for file in folder.iterdir()} == {
        "base_seed0_strength", "plain_seed0_strength"
    }  # fmt: skip
    images, labels = bench.take("val", 0, 6)
    clean = 100 * (bench.model(images).argmax(1) == labels).float().mean().item()
    assert first["base"][["eps", "n"]].values.tolist() == [[0, 6], [25.5, 6]]
    assert first["base"].value[0] == pytest.approx(clean, abs=1e-3)
    assert first["base"].value[1] <= first["base"].value[0]
    assert set(first["plain"].model) == {"plain"}
    monkeypatch.setattr(jobs, "finetuned", lambda *args, **kwargs: pytest.fail("trained again"))
    assert beside.strength(bench, settings, "plain").equals(first["plain"])


def test_a_wide_row_is_measured_once_on_images_that_begin_with_those_of_the_table(bench, folder, monkeypatch):
    study = replace(KEEPING.finetuning, columns=("clean", "cw", "a", "c"), wide_images=10)
    settings = replace(KEEPING, finetuning=study, suite=replace(KEEPING.suite, c_images=2))
    first = jobs.wide_row(bench, settings, "plain")
    assert {column: first.estimate(column).n for column in first.hits} == {"clean": 10, "a": 10, "c": 4}
    assert [file.stem for file in folder.iterdir()] == [f"{bench.model.name}_plain_seed0_wide"]
    row = jobs.run(bench, KEEPING, "plain").evaluation
    for column in ("clean", "a"):
        assert row.hits[column][""].tolist() == first.hits[column][""][:6].tolist()
    monkeypatch.setattr(jobs, "finetuned", lambda *args, **kwargs: pytest.fail("trained again"))
    again = jobs.wide_row(bench, settings, "plain")
    assert again.hits["c"]["fog/3"].tolist() == first.hits["c"]["fog/3"].tolist()
    more = replace(settings, finetuning=replace(study, wide_images=11))
    with pytest.raises(ValueError, match=r"plain_seed0_wide\.json was made from other inputs: suite\.images"):
        jobs.wide_row(bench, more, "plain")


def test_columns_that_are_no_longer_asked_for_or_cannot_be_shown_here_do_not_count(bench, folder, monkeypatch):
    """A library may be missing here that was there when the file was made."""
    first = jobs.run(bench, KEEPING, "plain").evaluation
    assert list(first.hits) == ["clean", "fgsm", "a"]
    monkeypatch.setattr(jobs, "finetuned", lambda *args, **kwargs: pytest.fail("trained again"))
    fewer = replace(KEEPING, finetuning=replace(KEEPING.finetuning, columns=("clean", "a")))
    assert list(jobs.run(bench, fewer, "plain").evaluation.hits) == ["clean", "a"]
    monkeypatch.setitem(COLUMNS, "fgsm", replace(COLUMNS["fgsm"], library="a_library_that_is_not_here"))
    assert list(jobs.run(bench, KEEPING, "plain").evaluation.hits) == list(first.hits)
    more = replace(KEEPING, finetuning=replace(KEEPING.finetuning, columns=("clean", "fgsm", "a", "sketch")))
    with pytest.raises(ValueError, match=r"columns\.sketch was None, is 1"):
        jobs.run(bench, more, "plain")


def test_the_row_before_finetuning_is_measured_once(bench, folder, monkeypatch):
    first = jobs.base_row(bench, KEEPING)
    assert [file.stem for file in folder.iterdir()] == [f"{bench.model.name}_base_seed0_row"]
    images, labels = bench.take("val", 0, 6)
    assert first.hits["clean"][""].tolist() == (bench.model(images).argmax(1) == labels).tolist()
    monkeypatch.setattr(jobs, "evaluate_model", lambda *args, **kwargs: pytest.fail("measured again"))
    again = jobs.base_row(bench, replace(KEEPING, finetune=replace(KEEPING.finetune, steps=3)))
    assert (again.model, again.fixed, again.seeds) == ("base", True, 1)
    assert all(again.hits[c][v].tolist() == h.tolist() for c, vs in first.hits.items() for v, h in vs.items())
    with pytest.raises(ValueError, match=r"base_seed0_row\.json was made from other inputs: suite\.images"):
        jobs.base_row(bench, replace(KEEPING, finetuning=replace(KEEPING.finetuning, images=7)))


def test_a_column_that_is_none_is_told_before_anything_is_trained(bench, folder, monkeypatch):
    monkeypatch.setattr(jobs, "finetuned", lambda *args, **kwargs: pytest.fail("trained"))
    settings = replace(KEEPING, finetuning=replace(KEEPING.finetuning, columns=("clean", "v3")))
    with pytest.raises(ValueError, match="no column 'v3': there are clean, "):
        jobs.run(bench, settings, "plain")


def test_of_a_random_noise_its_eps_alone_matters(bench, folder, monkeypatch):
    jobs.run(bench, KEEPING, "random")
    (file,) = folder.iterdir()
    record = json.loads(file.read_text())
    record["config"]["finetune"]["noise"]["steps"] = 99  # as in files from when it was an input
    file.write_text(json.dumps(record))
    monkeypatch.setattr(jobs, "finetuned", lambda *args, **kwargs: pytest.fail("trained again"))

    def other(**noise):
        return replace(KEEPING, finetune=replace(KEEPING.finetune, noise=replace(KEEPING.finetune.noise, **noise)))

    jobs.run(bench, other(lr=0.7, steps=9, batch=3), "random")
    with pytest.raises(ValueError, match=r"finetune\.noise\.eps was"):
        jobs.run(bench, other(eps=0.7), "random")
    assert jobs.config_of(other(lr=0.7), "nullspace").noise.lr == 0.7


def test_who_waits_for_a_kept_result_says_for_which(path, capsys):
    begun, done = Event(), Event()

    def slow():
        begun.set()
        done.wait(60)
        return {"value": 1}

    first = Thread(target=kept, args=(path, {}, slow))
    first.start()
    begun.wait(60)
    Timer(1, done.set).start()
    assert kept(path, {}, lambda: {"value": 2}) == {"value": 1}
    first.join()
    assert capsys.readouterr().out == f"{path} is being made by another process: waiting for it\n"


def test_how_many_images_a_column_takes_matters_where_it_is_measured(bench, folder, monkeypatch):
    def asking(**suite):
        return replace(KEEPING, suite=replace(KEEPING.suite, **suite))

    jobs.run(bench, asking(costly_images=3, c_images=5), "plain")
    (file,) = folder.iterdir()
    record = json.loads(file.read_text())
    assert not {"costly_images", "c_images"} & record["config"]["suite"].keys()
    record["config"]["suite"] |= {"costly_images": 3, "c_images": 5}  # as files were written once
    file.write_text(json.dumps(record))
    monkeypatch.setattr(jobs, "finetuned", lambda *args, **kwargs: pytest.fail("trained again"))
    jobs.run(bench, asking(costly_images=4, c_images=6), "plain")
    with_c = replace(KEEPING.finetuning, columns=("clean", "c"))
    with pytest.raises(ValueError, match=r"suite\.c_images was 5, is 6"):
        jobs.run(bench, replace(asking(c_images=6), finetuning=with_c), "plain")


def test_a_change_has_a_file_of_its_own(bench, folder):
    jobs.run(bench, KEEPING, "plain", trainable="pos_embed")
    noise = replace(KEEPING.finetune.noise, eps=0.4)
    trials.row(bench, KEEPING, "random", noise=noise)
    names = {file.stem.removeprefix(f"{bench.model.name}_") for file in folder.iterdir()}
    assert names == {"plain_seed0_trainable-pos_embed", "random_seed0_noise.eps-0.4"}


def test_a_recipe_is_part_of_what_is_kept(bench, folder, monkeypatch):
    jobs.run(bench, KEEPING, "mixup")
    (file,) = folder.iterdir()
    assert file.name == f"{bench.model.name}_mixup_seed0.json"
    assert json.loads(file.read_text())["config"]["finetune"]["mixup"] == 0.8
    assert jobs.config_of(KEEPING, "mixup", mixup=0.2).mixup == 0.2
    assert jobs.config_of(KEEPING, "plain") == replace(KEEPING.finetune, objective="plain", noise=NoiseConfig())
    monkeypatch.setitem(OBJECTIVES, "mixup", replace(OBJECTIVES["mixup"], recipe={"mixup": 0.3}))
    with pytest.raises(
        ValueError, match=r"_mixup_seed0\.json was made from other inputs: finetune\.mixup was 0\.8, is 0"
    ):
        jobs.run(bench, KEEPING, "mixup")
    jobs.run(bench, KEEPING, "mixup", mixup=0.1)
    assert (folder / f"{bench.model.name}_mixup_seed0_mixup-0.1.json").is_file()


def test_the_code_of_an_own_objective_is_part_of_what_is_kept(bench, folder, monkeypatch):
    jobs.run(bench, KEEPING, "plain")
    own = jobs._target(bench, KEEPING, jobs.config_of(KEEPING, "plain"))
    loss = lambda model, view, cfg: model(view.images).square().mean()  # noqa: E731
    monkeypatch.setitem(OBJECTIVES, "plain", Objective(loss))
    with pytest.raises(ValueError, match=r"_plain_seed0\.json was made from other inputs: .*objective was None, is "):
        jobs.run(bench, KEEPING, "plain")
    assert jobs._target(bench, KEEPING, jobs.config_of(KEEPING, "plain")) != own


def test_a_copy_of_the_images_finds_the_weights(bench, monkeypatch):
    cfg, places = jobs.config_of(KEEPING, "nullspace"), set()
    for times in ("then", "now"):
        monkeypatch.setattr(Bench, "identity", lambda self, split, told=times: {"split": split, "times": told})
        places.add(jobs._target(bench, KEEPING, cfg))
    assert len(places) == 1


def test_what_learns_noise_is_part_of_the_key_of_the_weights(bench, monkeypatch):
    targets = []
    monkeypatch.setattr(jobs, "finetune_model", lambda *args, target, **kwargs: targets.append(target))
    for version in (jobs.NOISE_VERSION, jobs.NOISE_VERSION, 99):
        monkeypatch.setattr(jobs, "NOISE_VERSION", version)
        jobs.finetuned(bench, KEEPING, "nullspace")
    assert targets[0] == targets[1] != targets[2]


def test_eps_sets_are_kept_too(bench, folder, monkeypatch):
    table = beside.eps_set(bench, KEEPING, "plain", eps=0.03)
    monkeypatch.setattr(beside, "reach_table", lambda *args, **kwargs: pytest.fail("measured again"))
    again = beside.eps_set(bench, KEEPING, "plain", eps=0.03)
    assert again.equals(table)
    for changes in ({"lr": 1e-2}, {"blocks": 2}):  # another model, other images
        with pytest.raises(pytest.fail.Exception, match="measured again"):
            beside.eps_set(bench, KEEPING, "plain", eps=0.03, **changes)


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
    chosen_on = [json.loads(file.read_text())["config"] for file in folder.iterdir()]
    assert len(chosen_on) == 4  # plain and nullspace at each rate
    assert {c["suite"]["first"] for c in chosen_on} == {study.search_first}  # beyond what notebooks report
    assert {c["suite"]["images"] for c in chosen_on} == {4}
    assert {name for c in chosen_on for name in c["shown"]} == {"val"}
    assert sorted(table[["lr", "eps"]].values.tolist()) == [[1e-4, 0.5], [1e-3, 0.5]]
    assert table.difference.is_monotonic_decreasing
    assert (table.low <= table.difference).all()


def test_the_search_is_kept_beside_the_runs_that_are_reported(bench, folder):
    """With as many rounds as the recipe it has the same settings: figures of other images have names of their own."""
    own = KEEPING.finetune.rounds
    settings = replace(KEEPING, finetuning=replace(KEEPING.finetuning, search_longer=(own,), search_images=4))
    reported = jobs.run(bench, KEEPING, "plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "VAL", ("clean", "fgsm"))
        table = search.settings_table(bench, settings)
    assert table["rounds"].tolist() == [own]
    assert table.n.tolist() == [4]
    assert len(list(folder.iterdir())) == 3
    again = jobs.run(bench, KEEPING, "plain").evaluation
    assert again.estimate("clean") == reported.evaluation.estimate("clean")
    assert search.place_of_settings(table, settings).startswith(f"this profile's {own} rounds, lr 0.001")


def test_the_first_of_the_search_is_reported_with_all_seeds(bench, folder):
    """The search trains on six images again and again, and its first recipe is measured where the notebooks are."""
    study = replace(KEEPING.finetuning, search_few=(6,), search_rounds=1, search_images=4, seeds=2)
    settings = replace(KEEPING, finetuning=study)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "VAL", ("clean", "fgsm"))
        table = search.settings_table(bench, settings)
    assert table[["images", "rounds"]].values.tolist() == [[6, 1]]
    found = search.on_test(bench, settings, table)
    assert list(found) == ["base", "plain", "nullspace"]
    assert [found[name].seeds for name in ("plain", "nullspace")] == [2, 2]
    configs = [json.loads(file.read_text())["config"] for file in folder.iterdir()]
    assert {c["data"]["train"]["images"] for c in configs} == {KEEPING.finetune.pool + KEEPING.finetune.heldout + 6}
    assert sorted(c["suite"]["first"] for c in configs) == [0] * 5 + [study.search_first] * 2  # the base row too
    assert {c["suite"]["images"] for c in configs if not c["suite"]["first"]} == {KEEPING.finetuning.images}


def test_nothing_is_reported_of_no_search(bench):
    assert search.on_test(bench, KEEPING, search.settings_table(bench, KEEPING)) == {}
