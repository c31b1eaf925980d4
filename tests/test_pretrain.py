"""Training from scratch: steps that learn, a kill that changes nothing, a record; and the model that ships."""

import json
import resource
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from threading import Thread

import pytest
import torch
from safetensors.torch import load_file

import nslib
import nslib.pretrain as training
from nslib.config import PretrainConfig
from nslib.data.rendered import Rendered
from nslib.data.shapes import SPLITS, VERSION, render
from nslib.machine.makers import only_maker
from nslib.models import build_model, load_model, weights_record
from nslib.pretrain import accuracy, pretrain
from nslib.runtime import data_path
from nslib.study.experiment import _trained

CFG = PretrainConfig(size=24, steps=8, batch=8, lr=3e-4, checkpoint_every=3, report_images=40)


def weights_of(target) -> dict[str, torch.Tensor]:
    return load_file(target)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """An undisturbed run, its record and its weights."""
    target = tmp_path_factory.mktemp("unbroken") / "shapes_vit.safetensors"
    record = pretrain(CFG, target, progress=False)
    return target, record


def test_record_has_what_a_reader_asks_for(unbroken):
    target, record = unbroken
    assert json.loads(target.with_suffix(".json").read_text()) == record
    assert record["config"] == json.loads(json.dumps(CFG.__dict__))
    assert (record["steps"], record["n"], record["shapes_version"]) == (8, 40, VERSION)
    assert set(record["top1"]) == set(SPLITS) - {"train"}
    assert all(0 <= share <= 1 for share in record["top1"].values())
    assert record["minutes"] >= 0
    assert {"torch", "timm"} <= record["versions"].keys()


def test_nothing_but_weights_and_record_is_left(unbroken):
    target, _ = unbroken
    assert sorted(p.name for p in target.parent.iterdir()) == ["shapes_vit.json", "shapes_vit.safetensors"]


def test_recorded_accuracy_is_that_of_the_file(unbroken):
    target, record = unbroken
    model = load_model("shapes_vit", target, img_size=24)
    assert record["top1"]["val"] == accuracy(model, *render("val", range(40), size=24))


def test_seed_decides_the_weights(unbroken, tmp_path):
    target, _ = unbroken
    for seed, expected in ((0, True), (1, False)):
        pretrain(replace(CFG, seed=seed), tmp_path / f"{seed}.safetensors", progress=False)
        assert same(weights_of(tmp_path / f"{seed}.safetensors"), weights_of(target)) == expected


def test_weights_of_other_settings_are_not_replaced(tmp_path):
    cfg, target = replace(CFG, steps=1), tmp_path / "w.safetensors"
    pretrain(cfg, target, progress=False)
    before, record = target.read_bytes(), target.with_suffix(".json")
    with pytest.raises(ValueError, match=r"other settings: lr was 0\.0003, is 0\.1; remove it or take another target"):
        pretrain(replace(cfg, lr=0.1), target, progress=False)
    record.write_text('{"config": {}}')
    with pytest.raises(ValueError, match=r"w\.json is no record of a training .*: remove it or take another target"):
        pretrain(cfg, target, progress=False)
    assert target.read_bytes() == before


@pytest.mark.parametrize("steps", range(1, 7))
def test_few_steps(tmp_path, steps):
    assert pretrain(replace(CFG, steps=steps), tmp_path / "w.safetensors", progress=False)["steps"] == steps


@pytest.mark.parametrize("steps", [2, 3, 4])  # fewer, as many and more than between saved states
def test_stopped_while_it_is_measured(tmp_path, monkeypatch, steps):
    cfg, target = replace(CFG, steps=steps), tmp_path / "w.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(training, "accuracy", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pretrain(cfg, target, progress=False)
    before = weights_of(target)
    pretrain(cfg, target, progress=False)
    assert same(weights_of(target), before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w.json", "w.safetensors"]


KILLED = """
    import os, signal, sys, torch
    torch.set_num_threads({threads})
    import nslib.pretrain as training
    from nslib.config import PretrainConfig

    render = training.render
    def killed_at_step_7(split, indices, **kwargs):
        if split == "train" and int(indices[0]) == 7 * {cfg}.batch:
            os.kill(os.getpid(), signal.SIGKILL)
        return render(split, indices, **kwargs)

    training.render = killed_at_step_7
    training.pretrain({cfg}, {target!r}, progress=False)
"""


@pytest.fixture
def killed(tmp_path):
    """A run that was killed at step 7, when its last saved state was that of step 6."""
    target = tmp_path / "shapes_vit.safetensors"
    code = textwrap.dedent(KILLED).format(threads=torch.get_num_threads(), cfg=CFG, target=str(target))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not target.exists()
    assert target.with_suffix(".training.pt").is_file()
    return target


def test_killed_run_goes_on_to_the_same_weights(unbroken, killed, monkeypatch):
    seen = []

    def watched(split, indices, **kwargs):
        seen.append((split, int(indices[0])))
        return render(split, indices, **kwargs)

    monkeypatch.setattr(training, "render", watched)
    record = pretrain(CFG, killed, progress=False)
    assert [start // CFG.batch for split, start in seen if split == "train"] == [6, 7]  # not from the beginning
    assert same(weights_of(killed), weights_of(unbroken[0]))
    assert record["top1"] == unbroken[1]["top1"]
    assert not killed.with_suffix(".training.pt").exists()


def test_finished_training_is_measured_again_but_not_repeated(unbroken, monkeypatch):
    target, record = unbroken
    before = target.read_bytes()

    def no_training(split, indices, **kwargs):
        assert split != "train"
        return render(split, indices, **kwargs)

    monkeypatch.setattr(training, "render", no_training)
    again = pretrain(CFG, target, progress=False)
    assert (again["top1"], again["minutes"]) == (record["top1"], record["minutes"])
    assert target.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "told"),
    [(dict(lr=1e-3), r"lr was 0\.0003, is 0\.001"), (dict(steps=9, seed=1), "seed was 0, is 1; steps was 8, is 9")],
)
def test_saved_state_of_other_settings_is_refused(tmp_path, change, told):
    cut = tmp_path / "w.safetensors"
    save_state_of(CFG, cut)
    with pytest.raises(
        ValueError, match=rf"training\.pt was made with other settings: {told}; remove it to start anew"
    ):
        pretrain(replace(CFG, **change), cut, progress=False)


@pytest.mark.parametrize("change", [{"checkpoint_every": 3}, {"report_images": 5}])
def test_saving_and_reporting_otherwise_is_no_other_training(tmp_path, monkeypatch, change):
    """Neither does a saved state refuse them nor is what the store has trained anew."""
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "w.safetensors"
    pretrain(CFG, whole, progress=False)
    save_state_of(CFG, cut)
    pretrain(replace(CFG, **change), cut, progress=False)
    assert cut.read_bytes() == whole.read_bytes()
    monkeypatch.setattr("nslib.study.experiment.pretrain", lambda cfg, target, device: target.touch())
    assert _trained(replace(CFG, **change), "cpu") == _trained(CFG, "cpu") != _trained(replace(CFG, seed=9), "cpu")


def save_state_of(cfg, target):
    """What an interruption leaves: here the loss of the fifth step cannot be had."""

    def interrupted(split, indices, **kwargs):
        if int(indices[0]) == 4 * cfg.batch:
            raise KeyboardInterrupt
        return render(split, indices, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "render", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrain(cfg, target, progress=False)
    assert target.with_suffix(".training.pt").is_file()


def test_full_disk_keeps_the_last_good_state(tmp_path):
    """A limit on the size of files stands for a disk that fills up while the second state is saved."""
    target = tmp_path / "w.safetensors"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def filling(split, indices, **kwargs):
        if int(indices[0]) == 5 * CFG.batch:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
        return render(split, indices, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "render", filling)
        try:
            with pytest.raises(OSError, match=r"w\.training\.pt could not be written .*: make room"):
                pretrain(CFG, target, progress=False)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["w.training.pt"]
    assert torch.load(target.with_suffix(".training.pt"), weights_only=True)["step"] == 3


def test_what_a_kill_left_is_swept(tmp_path):
    target = tmp_path / "w.safetensors"
    left = [
        tmp_path / f".w{kind}.abcdefgh.partial{suffix}" for kind, suffix in (("", ".safetensors"), (".training", ".pt"))
    ]
    other = tmp_path / ".v.training.abcdefgh.partial.pt"
    for path in (*left, other):
        path.touch()
    pretrain(replace(CFG, steps=1), target, progress=False)
    assert not any(path.exists() for path in left)
    assert other.exists()


def test_target_of_another_kind(tmp_path):
    with pytest.raises(ValueError, match=r"target must end in \.safetensors, got .*w\.pth"):
        pretrain(CFG, tmp_path / "w.pth", progress=False)


def test_weights_that_were_not_trained_here_are_not_replaced(tmp_path):
    target = tmp_path / "w.safetensors"
    target.write_bytes(b"somebody's own")
    with pytest.raises(ValueError, match=r"w\.safetensors has no record beside it, .*: remove it or take another"):
        pretrain(CFG, target, progress=False)
    assert target.read_bytes() == b"somebody's own"


def test_a_state_of_other_images_is_not_gone_on_from(killed, monkeypatch):
    monkeypatch.setattr(training, "VERSION", VERSION + 1)
    with pytest.raises(ValueError, match=rf"training\.pt was made with other settings: data.*{VERSION}.*{VERSION + 1}"):
        pretrain(CFG, killed, progress=False)


def test_damaged_state_is_named(tmp_path):
    target = tmp_path / "w.safetensors"
    state = target.with_suffix(".training.pt")
    state.write_bytes(b"half of a file")
    with pytest.raises((ValueError, OSError), match=r"w\.training\.pt.*remove it to start anew"):
        pretrain(CFG, target, progress=False)


@pytest.mark.parametrize(("every", "remedy"), [(8, "lower lr$"), (1, r"lower lr, and remove .*w\.training\.pt, which")])
def test_loss_that_is_not_finite_stops(tmp_path, every, remedy):
    wild = replace(CFG, lr=1e20, clip=1e30, checkpoint_every=every)
    with pytest.raises(FloatingPointError, match=r"gradient norm \w+ at step \d+ of .*lr=1e\+20.*: " + remedy):
        pretrain(wild, tmp_path / "w.safetensors", progress=False)
    assert not (tmp_path / "w.safetensors").exists()


def test_decay_reaches_every_matrix_and_nothing_else(tmp_path, monkeypatch):
    seen, adamw = [], torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, lr: seen.append(groups) or adamw(groups, lr=lr))
    pretrain(replace(CFG, steps=1), tmp_path / "w.safetensors", progress=False)
    shapes = {g["weight_decay"]: sorted(tuple(p.shape) for p in g["params"]) for g in seen[0]}
    model = build_model("shapes_vit", img_size=24).vit
    flat = [n for n, p in model.named_parameters() if p.ndim == 1 or n in ("cls_token", "pos_embed")]
    by_hand = {0.0: [], CFG.weight_decay: []}
    for name, parameter in model.named_parameters():
        by_hand[0.0 if name in flat else CFG.weight_decay].append(tuple(parameter.shape))
    assert shapes == {decay: sorted(each) for decay, each in by_hand.items()}


def test_accuracy_by_hand():
    logits = torch.tensor([[3.0, 1, 2], [1, 3, 2], [1, 2, 3], [3, 2, 1]])
    labels = torch.tensor([0, 1, 0, 0])
    for batch in (1, 3, 4):
        assert accuracy(lambda x: x, logits, labels, batch=batch) == 0.75


def test_training_learns(tmp_path, monkeypatch):
    """The same 32 images at every step are soon known by heart."""
    images = render("train", range(32), size=24)

    def the_same(split, indices, **kwargs):
        return images if split == "train" else render(split, indices, **kwargs)

    monkeypatch.setattr(training, "render", the_same)
    cfg = PretrainConfig(size=24, steps=60, batch=32, lr=1e-3, report_images=10)
    pretrain(cfg, tmp_path / "w.safetensors", progress=False)
    assert accuracy(load_model("shapes_vit", tmp_path / "w.safetensors", img_size=24), *images) > 0.9


@pytest.mark.slow
def test_shipped_model_reaches_its_record():
    """On 1,000 images of val that were looked at in no other place."""
    model = nslib.load_model()
    images, labels = render("val", range(100_000, 101_000), size=model.image_shape[1])
    top1 = accuracy(model, images, labels)
    assert top1 >= 0.92
    assert top1 == pytest.approx(weights_record()["top1"]["val"], abs=0.03)


def test_shipped_files_are_small_and_complete():
    weights = data_path("checkpoints", "shapes_vit.safetensors")
    assert weights.stat().st_size <= 6_000_000
    record = weights_record()
    assert {"config", "steps", "top1", "n", "versions", "shapes_version"} <= record.keys()
    assert record["top1"]["val"] >= 0.93
    shifts = [top1 for split, top1 in record["top1"].items() if split != "val"]
    assert min(shifts) > 0.3  # far above chance ...
    assert sum(shifts) / len(shifts) < record["top1"]["val"] - 0.05  # ... and below clean: robustness can move


def test_rendered_images_are_those_of_train_turned_and_mirrored():
    images, labels = render("train", range(5), seed=3, size=16)
    rendered = Rendered(5, 16, seed=3, size=16, device="cpu")
    ways = [image.rot90(turns, (1, 2)) for image in images for turns in range(4)]
    ways += [way.flip(2) for way in ways]
    known = {way.numpy().tobytes(): labels[i // 4 % 5].item() for i, way in enumerate(ways)}
    seen = [
        (image.numpy().tobytes(), label.item())
        for step in range(40)
        for image, label in zip(*rendered.draw(step), strict=True)
    ]
    assert all(known[image] == label for image, label in seen)
    assert {image for image, _ in seen} == set(known)
    assert torch.equal(rendered.draw(7).images, Rendered(5, 16, seed=3, size=16, device="cpu").draw(7).images)


@pytest.mark.parametrize("batch", [8, 9, 12, 20])
def test_an_eighth_of_a_batch_stands_each_way(batch, monkeypatch):
    """Whatever its size, up to one image."""
    ways = []
    monkeypatch.setattr(torch.Tensor, "rot90", lambda part, way, dims: ways.extend([way] * len(part)) or part)
    Rendered(5, batch, seed=3, size=16, device="cpu").draw(0)
    assert {ways.count(way) for way in range(8)} <= {batch // 8, batch // 8 + 1}


def test_images_that_do_not_fit_into_memory():
    with pytest.raises(ValueError, match=r"take 768000000\.0 GB of cpu: lower images, or set it to 0"):
        Rendered(10**15, 16, seed=3, size=16, device="cpu")


def test_training_on_rendered_images_goes_on_where_it_was(tmp_path, monkeypatch):
    cfg = replace(CFG, images=20)
    whole = pretrain(cfg, tmp_path / "whole.safetensors", progress=False)
    draw = Rendered.draw
    with monkeypatch.context() as broken:
        broken.setattr(Rendered, "draw", lambda images, step: 1 / 0 if step == 5 else draw(images, step))
        with pytest.raises(ZeroDivisionError):
            pretrain(cfg, tmp_path / "parts.safetensors", progress=False)
    parts = pretrain(cfg, tmp_path / "parts.safetensors", progress=False)
    assert parts["top1"] == whole["top1"]
    assert same(weights_of(tmp_path / "parts.safetensors"), weights_of(tmp_path / "whole.safetensors"))


def test_a_second_training_of_a_target_waits_for_the_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NSLIB_STORE", str(tmp_path / "store"))
    target = tmp_path / "shapes_vit.safetensors"
    with only_maker(target):
        second = Thread(target=pretrain, args=(replace(CFG, steps=2), target), kwargs={"progress": False})
        second.start()
        second.join(timeout=1)
        assert second.is_alive()
        assert not target.exists()
    second.join(timeout=100)
    assert target.is_file()
    assert "is being made by another process: waiting for it" in capsys.readouterr().out


def test_training_leaves_the_random_numbers_of_the_caller_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    pretrain(replace(CFG, steps=2), tmp_path / "shapes_vit.safetensors", progress=False)
    assert torch.equal(torch.rand(1), expected)
