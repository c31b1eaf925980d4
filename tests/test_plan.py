"""The models of a profile, made beforehand: which they are, and that one that fails does not stop the others."""

from types import SimpleNamespace

import pytest
from conftest import ROOT

from nslib.cli import main
from nslib.profiles import resolve
from nslib.study import jobs
from nslib.study.plan import Planned, planned
from nslib.study.prepare import prepare

TINY = {
    "finetune.rounds": 1,
    "finetune.steps": 1,
    "finetune.batch": 4,
    "finetune.pool": 8,
    "finetune.heldout": 4,
    "finetuning.objectives": ["plain", "nullspace", "madry"],
    "finetuning.columns": ["clean"],
    "finetuning.images": 4,
    "finetuning.trace_images": 4,
    "finetuning.variants": False,
    "finetune.attack_steps": 1,
    "finetune.noise.steps": 1,
}


@pytest.mark.parametrize("profile", ["full", "gpu"])
def test_the_runs_that_are_kept_are_those_that_are_planned(profile):
    settings = resolve(profile)
    depth = {"full": 6, "gpu": 12}[profile]
    names = set()
    for p in planned(settings, depth=depth):
        bench = SimpleNamespace(model=SimpleNamespace(name=p.model + "_renormalised" * p.astray))
        names.add(jobs._file(bench, settings, jobs.config_of(settings, p.objective, p.seed, **p.changes)).name)
    kept = {path.name for path in (ROOT / "figures" / profile / "records" / "jobs").glob("*.json")}
    search = {name for name in kept if "_first-" in name or "_rounds-" in name}  # and what came first in it
    kinds = ("reach-", "strength", "wide", "_row", "influence")
    beside = {name for name in kept if any(kind in name for kind in kinds)}
    assert names == kept - search - beside
    assert len(names) == len(planned(settings, depth=depth))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"finetune.warm_start": 1.2, "finetuning.objectives": ["plain", "nullspace", "permuted"]},
         "^finetune.warm_start must be 0 with permuted, got 1.2; permuted is among finetuning.objectives$"),
        ({"finetuning.search_lr": [1e-3], "finetuning.search_first": 10},
         r"search_first must be >= \d+, the images of val that are reported"),
        ({"finetuning.search_lr": [1e-3], "finetuning.wide_images": 30000},
         r"search_first must be >= 30000, .* got 20000"),
    ],
)  # fmt: skip
def test_what_would_fail_after_hours_is_refused_at_once(changes, told):
    with pytest.raises(ValueError, match=told):
        resolve("smoke", overrides=changes)


@pytest.mark.parametrize("several", ["noises", "groups"])
def test_options_of_notebook_11_go_beside_a_recipe_with_one_of_them(several):
    settings = resolve("smoke", overrides={f"finetune.{several}": 2, "finetuning.variants": True})
    for one in planned(settings, depth=6):
        jobs.config_of(settings, one.objective, one.seed, **one.changes)


@pytest.mark.filterwarnings("ignore:round 0. 1 noise steps did not reach eps")
def test_all_are_made_once_and_one_that_fails_does_not_stop_the_others(monkeypatch, capsys):
    settings, made = resolve("smoke", overrides=TINY), []

    def failing(bench, settings, objective, **rest):
        made.append(objective)
        if objective == "madry":
            raise ValueError("no such luck")
        return jobs.run(bench, settings, objective, **rest)

    monkeypatch.setattr("nslib.study.prepare.run", failing)
    failed = prepare(settings, jobs=1)
    assert failed == ["shapes_vit: madry, seed 0: FAILED, ValueError: no such luck"]
    # What takes longest first, then what 05 traces though the study leaves it out, last those of wrong mean and std.
    assert made == ["madry", "plain", "nullspace", "random", "plain", "nullspace"]
    told = capsys.readouterr().out
    assert "[1/6] shapes_vit: madry, seed 0: FAILED" in told
    assert "[6/6] shapes_vit: nullspace, wrong mean and std, seed 0: " in told


def test_where_no_base_model_is_to_be_had_nothing_is_finetuned(monkeypatch, tmp_path):
    monkeypatch.setattr("nslib.study.prepare.run", lambda *a, **k: pytest.fail("finetuned"))
    settings = resolve(
        "smoke", overrides=TINY | {"weights": str(tmp_path / "none.safetensors"), "fingerprint.trained": 0}
    )
    failed = prepare(settings, jobs=1)
    assert "none.safetensors" in failed[0]


def test_processes_make_what_one_would(capsys):
    settings = resolve(
        "smoke",
        overrides=TINY
        | {"finetuning.objectives": ["plain", "nullspace"], "finetuning.keep": True, "finetuning.wide_images": 6},
    )
    with pytest.warns(UserWarning, match="did not reach eps"):
        assert prepare(settings, jobs=1) == []
    kept = {p.name: p.read_text() for p in jobs.jobs_path("smoke").glob("*.json")}
    # Of two also the strength that they bear, and their columns on more images; of one what its noise does elsewhere.
    assert len(kept) == 10
    assert prepare(settings, jobs=2) == []
    assert {p.name: p.read_text() for p in jobs.jobs_path("smoke").glob("*.json")} == kept  # they are not made again


@pytest.mark.filterwarnings("ignore:round 0. 1 noise steps did not reach eps")
def test_models_that_notebooks_look_at_are_made_though_their_rows_are_kept(monkeypatch):
    few = {"finetuning.objectives": ["plain", "nullspace"], "finetuning.keep": True}
    few |= {"finetuning.seeds": 2, "finetuning.seeded": ["plain"]}
    settings, made = resolve("smoke", overrides=TINY | few), []
    assert prepare(settings, jobs=1) == []
    monkeypatch.setattr(
        "nslib.study.prepare.finetuned", lambda bench, settings, objective, seed: made.append((objective, seed))
    )
    assert prepare(settings, jobs=1) == []
    assert made == [("plain", 0), ("plain", 1), ("nullspace", 0), ("random", 0)]


def test_a_planned_run_says_what_it_is():
    one = Planned("shapes_vit", "nullspace", 2, {"noises": 4}, astray=True)
    assert str(one) == "shapes_vit: nullspace, noises, wrong mean and std, seed 2"


def test_the_command_says_what_failed(monkeypatch, capsys):
    assert _status(monkeypatch, "--jobs", "-1") == 2
    assert "jobs must be >= 0" in capsys.readouterr().err
    monkeypatch.setattr("nslib.study.prepare.prepare", lambda settings, jobs: ["a model"])
    assert _status(monkeypatch) == 1


def _status(monkeypatch, *options: str) -> int:
    monkeypatch.setattr("sys.argv", ["nslib", "prepare", "--profile", "smoke", *options])
    return main()
