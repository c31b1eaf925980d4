"""From what stands on the command line to settings."""

import sys
from operator import attrgetter

import pandas as pd
import pytest

from nslib.cli import main
from nslib.cli.options import overrides, settings_of
from nslib.config import WEIGHTS


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run `nslib ...` in an empty folder: (exit code, output)."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["nslib", *arguments])
        return main(), capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    ("profile", "folder", "expected"),
    [("", False, "laptop"), ("", True, "imagenet"), ("smoke", False, "smoke")],
)
def test_profile_follows_the_data(tmp_path, profile, folder, expected):
    root = str(tmp_path) if folder else ""
    settings = settings_of(profile, root, "auto", ())
    assert (settings.profile, settings.data.root, settings.device) == (expected, root, "auto")


def test_a_folder_is_never_passed_over(tmp_path):
    with pytest.raises(ValueError, match="--imagenet goes with --profile imagenet or imagenet_small, got profile 'sm"):
        settings_of("smoke", str(tmp_path), "auto", ())
    assert settings_of("imagenet_small", str(tmp_path), "auto", ()).data.kind == "folder"


@pytest.fixture
def folders_of_all_names(monkeypatch, tmp_path):
    """A working directory with a folder named as each word that a setting knows."""
    monkeypatch.chdir(tmp_path)
    for name in (*WEIGHTS, "shapes", "folder"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_a_folder_of_its_name_takes_no_words_meaning(folders_of_all_names):
    for word in WEIGHTS:
        told = (f"weights={word}", f"surrogate_weights={word}")
        assert set(overrides((told,)).values()) == set(overrides((), weights=word).values()) == {word}
    assert overrides((("data.kind=shapes",),)) == {"data.kind": "shapes"}
    assert settings_of("imagenet", ".", "auto", (("data.kind=folder",),)).data.kind == "folder"


def test_folders_of_images_and_of_weights_are_told_in_full(folders_of_all_names):
    here = folders_of_all_names
    found = overrides((("data.a=train", "surrogate_weights=./random"),), data__root="train", weights="./pretrained")
    assert found == {
        "data.root": str(here / "train"),
        "data.a": str(here / "train"),
        "weights": str(here / "pretrained"),
        "surrogate_weights": str(here / "random"),
    }


def test_device_and_further_options():
    settings = settings_of("", "", "cpu", (("suite.images=7",),), models="a", suite__columns=["c", "r"], weights="")
    assert (settings.device, settings.suite.images, settings.models) == ("cpu", 7, ("a",))
    assert settings.suite.columns == ("c", "r")
    assert settings.weights == "shipped"


def test_settings_of_one_task():
    given = (("noise.eps=0.1",),)
    assert overrides(given, within="finetune", weights="w") == {"weights": "w", "finetune.noise.eps": 0.1}
    assert settings_of("", "", "auto", given, within="finetune").finetune.noise.eps == 0.1
    assert not settings_of("", "", "auto", (("data.resize=false",),), within="finetune").data.resize
    with pytest.raises(ValueError, match=r"no setting 'finetune\.suite\.images'"):
        settings_of("", "", "auto", (("suite.images=7",),), within="finetune")


@pytest.mark.parametrize(
    "given",
    [("--set", "steps=7", "lr=0.5"), ("--set", "steps=7", "--set", "lr=0.5"), ("--set", "lr=0.5", "steps=7", "--set")],
    ids=" ".join,
)
def test_each_setting_counts_after_one_set_or_several(call, monkeypatch, given):
    asked = []
    monkeypatch.setattr("nslib.pretrain.pretrain", lambda cfg, *_, **__: asked.append(cfg) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call("pretrain", *given)
    assert [(cfg.steps, cfg.lr) for cfg in asked] == [(7, 0.5)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("finetune.mixup=.8", 0.8),
        (" finetune.cutmix = 1 ", 1.0),
        ("suite.fgsm_eps=4/255", 4 / 255),
        ("suite.fgsm_eps=0.25/255", 0.25 / 255),
        ("approximate.noise.eps=None", None),
        ("approximate.noise.eps=null", None),
        ("finetuning.variants=True", True),
        ("data.resize=false", False),
        ("suite.columns=clean", ("clean",)),
        ("suite.columns=clean, fgsm", ("clean", "fgsm")),
        ('suite.columns=["clean", "fgsm"]', ("clean", "fgsm")),
        ("suite.columns=[clean, fgsm]", ("clean", "fgsm")),
        ("approximate.eps=.01,.1", (0.01, 0.1)),
        ("approximate.eps=0.1", (0.1,)),
        ("robustness.eps=0, 1/255", (0.0, 1 / 255)),
        ("closure.spans=(1, 2)", (1, 2)),
        ("weights=2024_01", "2024_01"),  # a number in Python, and here a folder
        ("weights=8/255", "8/255"),
        ("finetune.clip=inf", float("inf")),
        ('weights="a, b"', "a, b"),
    ],
)
def test_values_that_settings_take(given, expected):
    found = attrgetter(given.split("=")[0].strip())(settings_of("", "", "auto", ((given,),)))
    assert found == expected
    assert type(found) is type(expected)


def test_several_numbers_come_as_what_a_notebook_can_be_given():
    assert overrides((("approximate.eps=0.01,0.03",),)) == {"approximate.eps": [0.01, 0.03]}


@pytest.mark.parametrize("given", ["finetune.mixup=much", "finetune.mixup=1/0", "approximate.eps=.1,small"])
def test_values_that_settings_refuse(given):
    with pytest.raises(ValueError, match=rf"setting {given.split('=')[0]} must be a float such as .*, got '"):
        settings_of("", "", "auto", ((given,),))


def test_spaces_between_columns(call, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "nslib.study.experiment.open_bench", lambda settings: asked.append(settings.suite.columns) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        call("evaluate", "--columns", "clean, fgsm")
    assert asked == [("clean", "fgsm")]


def test_reproduce_dry_run_tells_the_whole_profile(call, tmp_path, monkeypatch):
    """In numbers of `forecast`, which has tests of its own; no notebook is run."""
    parts = pd.DataFrame({"part": ["columns", "noise"], "images": [10, 20], "hours": [1.5, 0.25],
                          "noise_hours": [0.0, 2.0], "memory": [0.1, 0.75]})  # fmt: skip
    asked = []
    monkeypatch.setattr("nslib.study.forecast.forecast", lambda settings: asked.append(settings) or parts)
    code, printed = call("reproduce", "--dry-run", "--profile", "smoke", "--set", "images=7")
    assert code == 0
    assert [(s.profile, s.images) for s in asked] == [("smoke", 7)]
    assert "1.8 hours, and at most 2.0 for noise, if none is inside eps before its last step" in printed
    assert "0.8 GB of memory" in printed
    assert list(tmp_path.iterdir()) == []


def test_finetune_dry_run_only_tells(call, tmp_path):
    tiny = ("--set", "rounds=3", "steps=2", "batch=4", "pool=8", "heldout=4", "noise.batch=4", "noise.steps=50")
    code, printed = call("finetune", "--dry-run", "--target", "w.safetensors", *tiny)
    assert code == 0
    told = [line.split(":")[0] for line in printed.splitlines()]
    assert told == [
        "images",
        "split train",
        "noise steps",
        "forward passes",
        "cost",
        "memory of a process, GB",
        "hours",
    ]
    assert "images: 24, in 3 rounds of 2 updates of 4" in printed
    assert "split train: 12 images for the noise, the others for the updates" in printed
    assert "noise steps: without early stops 150" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["finetune", "evaluate"])
def test_dry_run_trains_nothing_first(call, monkeypatch, command):
    """Models of a profile that has them trained from scratch are opened after two steps."""
    asked = []
    monkeypatch.setattr("nslib.study.experiment.pretrain", lambda cfg, target, **_: asked.append(cfg.steps) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call(command, "--profile", "gpu", "--model", "shapes_vit", "--dry-run")
    assert asked == [2]


def test_finetune_closes_with_its_cost(call):
    tiny = ("--objective", "plain", "--set", "rounds=1", "steps=2", "batch=4", "pool=8", "heldout=4")
    code, printed = call("finetune", "--target", "w.safetensors", *tiny)
    assert code == 0
    assert "forward passes: 0 for noise, 24 for updates\ncost: 8 images of standard training\n" in printed
