"""What lies at a target: never replaced unasked, never beside the record of others, and with its own normalisation."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import TINY, files_in, make_vit, random_images

from nslib.config import DataConfig, FinetuneConfig, NoiseConfig, PretrainConfig
from nslib.data.source import ShapesSource
from nslib.finetune import result, rounds
from nslib.finetune.objectives import recipe_of
from nslib.finetune.rounds import finetune_model
from nslib.finetune.state import identity_of
from nslib.models import load_model
from nslib.pretrain import pretrain
from nslib.runtime import write_text
from nslib.store import model_digest
from nslib.vit.staged import StagedViT

CFG = FinetuneConfig(precision="float32", objective="plain", rounds=2, steps=2, batch=4, pool=4, heldout=4, lr=1e-3)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "w.safetensors"


def contents(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


# Not replaced


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dict(lr=2e-3), r"finetune\.lr was 0\.001, is 0\.002"),
        (dict(objective="mixup"), r"finetune\.mixup was 0\.0, is 0\.8; finetune\.objective was 'plain', is 'mixup'"),
    ],
)
def test_result_of_other_settings_is_kept(model, source, target, change, told):
    finetune_model(model, source, CFG, target=target)
    before = contents(target.parent)
    with pytest.raises(
        ValueError, match=rf"w\.safetensors was made with other settings: {told}; remove it or take another"
    ):
        finetune_model(model, source, replace(CFG, **change), target=target)
    with pytest.raises(ValueError, match=r"other settings: weights was '\w+', is '\w+'; remove it or take another"):
        finetune_model(make_vit("shapes_vit", **TINY, seed=1), source, CFG, target=target)
    assert contents(target.parent) == before
    target.unlink()
    assert finetune_model(model, source, replace(CFG, **change), target=target).record["images"] == 16


def test_damaged_result_is_told(model, source, target):
    finetune_model(model, source, CFG, target=target)
    target.write_bytes(target.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"w\.safetensors is damaged \(.+\): remove it or take another target"):
        finetune_model(model, source, CFG, target=target)


@pytest.mark.parametrize("record", [None, "", "{}", '{"config": {"steps": 3}, "top1": 0.9}'])
def test_weights_that_no_finetuning_has_made_are_kept(model, source, target, record):
    target.write_bytes(b"somebody's weights")
    if record is not None:
        target.with_suffix(".json").write_text(record)
    before = contents(target.parent)
    with pytest.raises(
        ValueError, match=r"w\.json is no record of a finetuning \(\w+\): remove it or take another target"
    ):
        finetune_model(model, source, CFG, target=target)
    assert contents(target.parent) == before


@pytest.mark.parametrize("name", ["w", "w.pth", "w.safetensors.tmp"])
def test_target_of_another_kind(model, source, tmp_path, name):
    with pytest.raises(ValueError, match=rf"target must end in \.safetensors, got .*{name}"):
        finetune_model(model, source, CFG, target=tmp_path / name)
    assert files_in(tmp_path) == []


# Killed at the very end


class Killed(Exception):
    pass


def test_killed_between_weights_and_record(model, source, target, monkeypatch):
    """There lay an old record, whose weights somebody had removed."""
    whole = finetune_model(model, source, CFG, target=target.with_stem("whole"))
    target.with_suffix(".json").write_text('{"config": {}, "versions": {}}')

    def killed(path, text):
        if path.suffix == ".json":
            raise Killed
        return write_text(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(result, "write_text", killed)
        with pytest.raises(Killed):
            finetune_model(model, source, CFG, target=target)
    assert {"w.safetensors", "w.training.pt"} <= set(files_in(target.parent))
    assert not target.with_suffix(".json").exists()
    again = finetune_model(model, source, CFG, target=target)
    assert target.read_bytes() == target.with_stem("whole").read_bytes()
    assert [r.losses for r in again.history] == [r.losses for r in whole.history]
    assert json.loads(target.with_suffix(".json").read_text()) == again.record
    assert not target.with_suffix(".training.pt").exists()


def test_killed_before_its_saved_state_is_removed(model, source, target, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(rounds.StateFile, "remove", lambda self: None)
        finetune_model(model, source, CFG, target=target)
    assert target.with_suffix(".training.pt").exists()
    monkeypatch.setattr(rounds, "Trainer", None)
    finetune_model(model, source, CFG, target=target)
    assert files_in(target.parent) == ["w.json", "w.jsonl", "w.safetensors"]


# What is told of it


@pytest.mark.parametrize(
    ("objective", "asked", "expected"),
    [
        ("mixup", {}, dict(mixup=0.8, augment="")),
        ("mixup", dict(mixup=0.2), dict(mixup=0.2, augment="")),
        ("augmix", {}, dict(mixup=0.0, augment="augmix-m3-w3")),
        ("randaugment", dict(augment="rand-m5", mixup=0.1), dict(mixup=0.1, augment="rand-m5")),
        ("plain", dict(mixup=0.1), dict(mixup=0.1, augment="")),
    ],
)
def test_recipe_gives_way_to_what_is_asked_for_and_is_recorded(model, source, objective, asked, expected):
    cfg = replace(CFG, objective=objective, **asked)
    recorded = finetune_model(model, source, cfg).record["config"]["finetune"]
    assert {name: recorded[name] for name in expected} == expected
    assert recipe_of(recipe_of(cfg)[1])[1] == recipe_of(cfg)[1]


def test_recipe_that_is_asked_for_trains_other_weights(model, source):
    first, same, other = (
        finetune_model(model, source, replace(CFG, objective="mixup", mixup=m)).history[0].losses for m in (0, 0.8, 5.0)
    )
    assert first == same != other


def test_result_keeps_the_normalisation_of_its_model(model, target):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    own = StagedViT(model.vit, mean=mean, std=std, name="shapes_vit").eval()
    made = finetune_model(own, ShapesSource(DataConfig(), own), CFG, target=target).model
    again = load_model("shapes_vit", target, **TINY)
    assert again.mean.flatten().tolist() == pytest.approx(mean)
    images = random_images(own, 3)
    with torch.inference_mode():
        assert torch.equal(again(images), made(images))


# What changes nothing is no other setting

OF_OTHERS = {
    "noise": dict(noise=NoiseConfig(eps=0.5, lr=0.5)), "parts": dict(block=1, groups=3), "noises": dict(noises=3),
    "warm": dict(warm_start=1.2), "attack": dict(attack_eps=0.25, attack_steps=1), "beta": dict(trades_beta=9.0),
    "rho": dict(sam_rho=0.5),
}  # fmt: skip
TAKEN = {
    "plain": set(), "augmix": set(), "sam": {"rho"}, "madry": {"attack"}, "trades": {"attack", "beta"},
    "random": {"noise", "parts", "noises"}, "nullspace": {"noise", "parts", "noises", "warm"},
}  # fmt: skip


@pytest.mark.parametrize("objective", TAKEN)
def test_an_objective_is_known_by_the_settings_that_it_takes(objective):
    mine = replace(CFG, objective=objective)
    changed = {name for name, change in OF_OTHERS.items() if identity_of(replace(mine, **change)) != identity_of(mine)}
    assert changed == TAKEN[objective]


@pytest.mark.parametrize("objective", ["plain", "madry", "random"])
def test_settings_that_an_objective_does_not_take_change_no_weight(model, source, target, objective):
    short = replace(CFG, objective=objective, rounds=1, attack_steps=1)
    first = finetune_model(model, source, short, target=target).model
    for name in OF_OTHERS.keys() - TAKEN[objective]:
        other = replace(short, **OF_OTHERS[name])
        assert model_digest(finetune_model(model, source, other).model) == model_digest(first)
        assert finetune_model(model, source, other, target=target).record["images"] == 8


def test_a_model_that_was_made_already_can_be_trained_as_one_that_is_made_now(model, source, target):
    model.requires_grad_(False)
    for _ in ("made", "loaded"):
        assert all(p.requires_grad for p in finetune_model(model, source, CFG, target=target).model.parameters())


def test_a_target_may_lie_in_the_home_folder(model, source, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    finetune_model(model, source, CFG, target="~/w.safetensors")
    assert (tmp_path / "home" / "w.safetensors").is_file()


# Files of the user's own


@pytest.mark.parametrize(
    ("suffix", "content"), [(".json", '{"my": "labels"}'), (".jsonl", '{"img": 1}\n'), (".json", "x")]
)
def test_files_of_a_record_s_name_that_no_run_has_written_are_kept(model, source, target, suffix, content):
    target.with_suffix(suffix).write_text(content)
    with pytest.raises(ValueError, match=rf"w\{suffix} is no record of a run, and would be replaced: move it, or take"):
        finetune_model(model, source, CFG, target=target)
    with pytest.raises(ValueError, match="is no record of a run"):
        pretrain(PretrainConfig(size=24, steps=1, batch=8, report_images=4), target, progress=False)
    assert files_in(target.parent) == [f"w{suffix}"]
    assert target.with_suffix(suffix).read_text() == content


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_are_refused_before_anything_is_written(source, target, kind):
    half = make_vit("shapes_vit", **TINY).to(kind)
    with pytest.raises(ValueError, match=r"shapes_vit has weights of torch\.b?float16, need float32: model\.float\(\)"):
        finetune_model(half, source, CFG, target=target)
    assert files_in(target.parent) == []


def test_a_run_that_is_refused_leaves_nothing(source, target):
    with pytest.raises(ValueError, match="classes"):
        finetune_model(make_vit("shapes_vit", **TINY | {"num_classes": 5}), source, CFG, target=target)
    assert files_in(target.parent) == []
    assert list(target.parent.iterdir()) == []
