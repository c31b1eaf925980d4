"""From what stands on the command line to settings."""

import sys

import pytest

from nslib.cli import main
from nslib.cli.options import overrides, settings_of


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


def test_device_and_further_options():
    settings = settings_of("", "", "cpu", (("suite.images=7",),), models="a", suite__columns=["c", "r"], weights="")
    assert (settings.device, settings.suite.images, settings.models) == ("cpu", 7, ("a",))
    assert settings.suite.columns == ("c", "r")
    assert settings.weights == "shipped"


def test_settings_of_one_task():
    given = (("noise.eps=0.1",),)
    assert overrides(given, within="finetune", weights="w") == {"weights": "w", "finetune.noise.eps": 0.1}
    assert settings_of("", "", "auto", given, within="finetune").finetune.noise.eps == 0.1
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


def test_finetune_dry_run_only_tells(call, tmp_path):
    tiny = ("--set", "rounds=3", "steps=2", "batch=4", "pool=8", "heldout=4", "noise.batch=4", "noise.steps=50")
    code, printed = call("finetune", "--dry-run", "--target", "w.safetensors", *tiny)
    assert code == 0
    told = [line.split(":")[0] for line in printed.splitlines()]
    assert told == ["images", "noise steps", "forward passes", "cost", "memory of a process, GB", "hours"]
    assert "images: 24, in 3 rounds of 2 updates of 4" in printed
    assert "noise steps: without early stops 150" in printed
    assert list(tmp_path.iterdir()) == []


def test_finetune_closes_with_its_cost(call):
    tiny = ("--objective", "plain", "--set", "rounds=1", "steps=2", "batch=4", "pool=8", "heldout=4")
    code, printed = call("finetune", "--target", "w.safetensors", *tiny)
    assert code == 0
    assert "forward passes: 0 for noise, 24 for updates\ncost: 8 images of standard training\n" in printed
