"""Notebooks 05, 07, 08 and 11 where columns and objectives are missing, and what they save; the path of `gpu`."""

import json
from collections import Counter

import matplotlib.pyplot as plt
import pytest
from conftest import ROOT

from nslib.finetune.objectives import ADVERSARIAL
from nslib.profiles import resolve
from nslib.report.cells import read_cells
from nslib.runtime import store_path
from nslib.study.forecast import finetunings
from nslib.study.prepare import prepare

FEW = {
    "surrogate": "",  # no damagenet
    "finetuning.objectives": ["nullspace", "plain", "random"],
    "finetuning.columns": ["clean", "fgsm", "damagenet"],
    "finetuning.images": 16,
    "finetuning.trace_images": 8,
    "finetuning.eps": [0.1],
    "approximate.reach_images": 16,
    "pool": 32,
    "heldout": 16,
    "finetune.rounds": 1,
    "finetune.steps": 1,
    "finetune.batch": 8,
    "finetune.pool": 32,
    "finetune.heldout": 16,
    "finetune.noise.eps": 0.1,
    "finetune.noise.batch": 16,
    "finetune.attack_steps": 1,
}


@pytest.fixture
def execute(monkeypatch, tmp_path):
    """Runs a notebook's source at a profile with these settings; its names and its record."""
    monkeypatch.setenv("NSLIB_FIGURES", str(tmp_path))

    def run(name: str, profile: str = "smoke", **changes) -> tuple[dict, dict]:
        code = (ROOT / "paper_nb" / f"{name}.py").read_text().replace('profile = "smoke"', f"profile = {profile!r}")
        code = code.replace("overrides = {}", f"overrides = {FEW | changes}")
        exec(compile(code, f"{name}.py", "exec"), cells := {})
        plt.close("all")
        for table in tmp_path.rglob("*.csv"):
            assert read_cells(table, most=3).columns  # as the page does, which an empty file would end
        return cells, json.loads((tmp_path / profile / "records" / f"{name}.json").read_text())

    return run


def test_05(execute):
    cells, record = execute("05_finetuning")
    assert cells["measured"] == ["fgsm"]
    assert cells["influence"][["objective", "seed", "round", "n"]].values.tolist() == [["nullspace", 0, 0, 16]]
    assert cells["table5"].step.tolist() == [0]
    assert [ax.get_ylabel() for ax in cells["axes"]][2:] == [
        f"{m} top-1, %" for m in ("clean", "adversarial", "shifted")
    ]
    assert record["facts"]["missed_eps"] == {"nullspace": 0}


def test_05_with_noise_for_each_group_of_classes(execute):
    cells, _ = execute("05_finetuning", **{"finetune.groups": 2, "finetune.noise.eps": 0.5})
    assert 0 <= cells["influence"].gap[0] < 2


def test_07_without_a_model_trained_on_attacks(execute, tmp_path):
    cells, record = execute("07_adversarial_finetuning")
    assert cells["table3"].columns.tolist() == ["model", "seeds", "clean", "fgsm", "mean", "missed_eps"]
    assert not list(tmp_path.rglob("*against_adversarial*"))
    assert cells["gains"].empty
    assert record["facts"]["natural"] == ["clean"]


def test_07_tells_the_seeds_compared_and_judges_no_unfinished_model(execute):
    changes = {"finetuning.objectives": ["nullspace", "plain", "madry"], "finetuning.seeds": 2}
    cells, record = execute("07_adversarial_finetuning", **changes)
    assert cells["found"]["nullspace"].seeds == 2
    assert "seeds of each: 1;" in cells["figure"].get_supxlabel()
    assert cells["curves"].model.unique().tolist() == ["base", "plain", "nullspace", "madry"]
    assert cells["gains"].side.tolist() == ["natural", "adversarial"]
    assert (cells["rivals"], cells["judging"]) == (["madry"], {})
    assert record["facts"]["missed_eps"] == {"nullspace": 0}


def test_07_compares_on_more_images_where_it_is_asked_to(execute):
    changes = {"finetuning.objectives": ["nullspace", "plain", "madry"], "finetuning.wide_images": 24}
    cells, _ = execute("07_adversarial_finetuning", **changes)
    assert list(cells["wide"]) == ["nullspace", "madry"]
    assert set(cells["against"].n) == set(cells["gains"].n[cells["gains"].side == "adversarial"]) == {24}
    assert cells["found"]["nullspace"].estimate("clean").n == 16


def test_08(execute):
    cells, record = execute("08_epsilon_ablation")
    assert cells["columns"] == ["fgsm"]  # of Table 4, which has no clean one
    assert set(record["facts"]["missed_eps"]) == {"nullspace 0.1", "random 0.1"}


@pytest.mark.parametrize("columns", [["clean"], ["clean", "c"]])
def test_08_refuses_at_once_columns_that_it_cannot_compare(execute, columns, monkeypatch):
    monkeypatch.setattr("nslib.open_bench", lambda *a: pytest.fail("began"))
    with pytest.raises(ValueError, match=r"finetuning.columns must be one or more of fgsm, .* got \('clean'"):
        execute("08_epsilon_ablation", **{"finetuning.columns": columns})


def test_11(execute, capsys):
    cells, record = execute("11_controls", **{"finetuning.seeds": 2, "finetune.noise.eps": 0.5})
    assert cells["pairs"].reference.tolist() == ["plain", "random"]
    assert cells["pairs"].seeds.tolist() == [2, 2]
    assert cells["columns"] == ["clean", "fgsm"]
    assert "no search at this profile" in capsys.readouterr().out
    assert record["facts"]["missed_eps"]["nullspace, 4 noises"] == 0


def test_11_without_the_variants(execute):
    cells, _ = execute("11_controls", **{"finetuning.variants": False})
    noted = cells["options"].set_index("model").note
    assert noted[noted.isna()].index.tolist() == ["base", "nullspace", "plain"]
    assert set(noted.dropna()) == {"run at full"}
    assert "nullspace, 4 noises" in noted
    assert cells["gains"].model.tolist() == ["nullspace"]
    assert len(cells["confound"]) == 4
    made = (store_path() / "finetune").glob("*/*.safetensors")
    few = finetunings(resolve("smoke", overrides=FEW | {"finetuning.variants": False, "finetuning.eps": []}))
    assert Counter(path.stem for path in made) == few


@pytest.mark.slow
@pytest.mark.parametrize("name", ["00_overview", "07_adversarial_finetuning", "13_fingerprint"])
def test_the_gpu_profile_on_a_cpu(execute, name):
    """What no GPU has run of it yet: a model trained from scratch, finetuned in bfloat16, a handful of steps each."""
    few = {
        "device": "cpu",
        "models": ["vit_tiny_patch16_224"],
        "images": 8,
        "pretrain.size": 32,
        "pretrain.steps": 3,
        "pretrain.batch": 4,
        "pretrain.images": 8,
        "pretrain.report_images": 4,
        "finetune.noise.eps": 2.0,
        "finetuning.objectives": ["nullspace", "plain", "random", *ADVERSARIAL],
        "finetuning.seeded": [],
        "robustness.images": 8,
        "fingerprint.steps": 3,
        "fingerprint.batch": 4,
        "fingerprint.untrained": 2,
        "fingerprint.permuted": 2,
    }
    cells, record = execute(name, "gpu", **few)
    settings = cells["settings"]
    assert (settings.profile, settings.weights, settings.finetune.precision) == ("gpu", "train", "bfloat16")
    assert record["config"]["models"] == few["models"]
    if name == "00_overview":
        assert cells["lab"].model.image_shape == (3, 32, 32)
    elif name == "07_adversarial_finetuning":
        attacked = cells["curves"].groupby("model").eps.apply(lambda eps: eps.round(6).tolist())
        budgets = [round(255 * eps, 6) for eps in settings.robustness.eps]
        assert attacked.to_dict() == dict.fromkeys(("base", "nullspace", "plain", *ADVERSARIAL), budgets)
    else:
        kinds = {"untrained seed": 2, "permuted weight": 2, "trained seed": 1}
        assert cells["strangers"].kind.value_counts().to_dict() == kinds
        assert cells["finetunings"].suspect.tolist() == ["nullspace", "plain", "random"]


@pytest.mark.filterwarnings("ignore:round 0. 20 noise steps did not reach eps")
def test_the_models_that_are_planned_are_those_that_are_finetuned(execute):
    asked = {"finetuning.eps": [0.1, 0.2], "finetuning.fixed_steps": 2, "finetune.noise.steps": 20}
    settings = resolve("smoke", overrides=FEW | asked)
    for name in ("05_finetuning", "07_adversarial_finetuning", "08_epsilon_ablation", "11_controls"):
        execute(name, **asked)
    made = sorted((store_path() / "finetune").glob("*/*.safetensors"))
    assert Counter(path.stem for path in made) == finetunings(settings)
    assert prepare(settings, jobs=1) == []
    assert sorted((store_path() / "finetune").glob("*/*.safetensors")) == made
