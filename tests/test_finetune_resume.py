"""A finetuning that is killed, or finds the disk full, goes on to the weights of an unbroken one, bit for bit."""

import json
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch
from conftest import ROOT, TINY, files_in, make_vit
from safetensors.torch import load_file, save_file

from nslib.config import DataConfig, FinetuneConfig, NoiseConfig
from nslib.data.source import FolderSource, ShapesSource
from nslib.finetune import rounds
from nslib.finetune.objectives import OBJECTIVES
from nslib.finetune.result import Log
from nslib.finetune.rounds import finetune_model
from nslib.finetune.state import Place, Round
from nslib.machine.processes import Share
from nslib.store import changed_settings

NOISE = NoiseConfig(limit=1.0, lr=0.05, steps=100, batch=16, eps=0.05)
CFG = FinetuneConfig(
    precision="float32", rounds=3, steps=5, batch=8, lr=1e-3, lr_min=1e-5, pool=32, heldout=16, noise=NOISE,
    checkpoint_every=2, ema=0.9, mixup=0.8, augment="rand-m9-mstd0.5-inc1", drop_path=0.2, noises=2, warm_start=1.5,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A process that has begun to compute in several threads cannot fork into one that computes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model():
    tiny = make_vit("shapes_vit", **TINY)
    with torch.no_grad():
        tiny.vit.head.weight *= 100
    return tiny


@pytest.fixture(scope="module")
def source(model):
    return ShapesSource(DataConfig(), model)


@pytest.fixture(scope="module")
def unbroken(model, source, tmp_path_factory):
    """Target, result and moments of an undisturbed run."""
    target, moments = tmp_path_factory.mktemp("unbroken") / "w.safetensors", []
    return target, finetune_model(model, source, CFG, target=target, on_step=moments.append), moments


def same_file(a, b) -> bool:
    a, b = load_file(a), load_file(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def timeless(history):
    return [replace(r, noise_seconds=0, update_seconds=0) for r in history]


KILLED = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    import torch
    torch.set_num_threads(1)
    from pathlib import Path
    from safetensors.torch import load_file
    from conftest import make_vit
    from nslib.config import *
    from nslib.data.source import ShapesSource
    from nslib import store
    from nslib.finetune import rounds

    model = make_vit("shapes_vit", **{tiny})
    model.vit.load_state_dict(load_file({base!r}))
    source = ShapesSource(DataConfig(), model)
    kills = {kills}

    atomic_path = store.atomic_path

    def half_written(path):
        round_, phase, _ = kills[0]
        if phase == "save" and seen and (seen[-1].round, seen[-1].step) == (round_, kills[0][2]):
            path.with_name(f".{{path.stem}}.abcdefgh.partial.pt").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        return atomic_path(path)

    store.atomic_path = half_written
    seen = []

    def fate(moment):
        seen.append(moment)
        if (moment.round, moment.phase, moment.step) == kills[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    def run():
        rounds.finetune_model(model, source, {cfg}, target=Path({target!r}), on_step=fate)

    # One process for each kill, forked from one that has loaded torch already.
    while kills:
        child = os.fork()
        if not child:
            run()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (kills[0], status)
        saved = torch.load(Path({target!r}).with_suffix(".training.pt"), weights_only=True)
        print(saved["place"]["round"], saved["place"]["step"])
        kills.pop(0)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_run_goes_on_to_the_same_weights(model, source, unbroken, tmp_path):
    """Killed among updates, at the end of a round, in the search for a noise, in the middle of writing the state."""
    target, base = tmp_path / "w.safetensors", tmp_path / "base.safetensors"
    save_file(model.vit.state_dict(), base)
    last = [m.step for m in unbroken[2] if (m.round, m.phase) == (1, "noise")][-1]
    assert last >= 1
    killed = {  # when, and the place that is then saved last
        (0, "update", 1): "0 0", (0, "update", 3): "0 2", (0, "update", 5): "0 4", (1, "noise", last): "1 0",
        (1, "update", 4): "1 3", (1, "save", 5): "1 3", (2, "noise", 0): "2 0",
    }  # fmt: skip
    code = textwrap.dedent(KILLED).format(
        tests=str(ROOT / "tests"), tiny=TINY, base=str(base), cfg=CFG,
        target=str(target), kills=list(killed),
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.splitlines() == list(killed.values())
    assert not target.exists()

    moments = []
    made = finetune_model(model, source, CFG, target=target, on_step=moments.append)
    assert {m.round for m in moments} == {2}  # not from the beginning
    assert same_file(target, unbroken[0])
    assert timeless(made.history) == timeless(unbroken[1].history)
    assert not target.with_suffix(".training.pt").exists()
    assert files_in(tmp_path) == ["base.safetensors", "w.json", "w.jsonl", "w.safetensors"]
    lines = [json.loads(line)["round"] for line in target.with_suffix(".jsonl").read_text().splitlines()]
    assert lines == [0, 1, 2]


class Stopped(KeyboardInterrupt):
    """A person's."""


def stopped(model, source, cfg, target, place=(1, "update", 3)):
    """What a stopped run leaves."""

    def stop(moment):
        if (moment.round, moment.phase, moment.step) == place:
            raise Stopped

    with pytest.raises(Stopped):
        finetune_model(model, source, cfg, target=target, on_step=stop)
    return target.with_suffix(".training.pt")


def test_noise_that_was_found_is_not_searched_again(model, source, unbroken, tmp_path):
    target, moments = tmp_path / "w.safetensors", []
    stopped(model, source, CFG, target, (1, "update", 1))
    finetune_model(model, source, CFG, target=target, on_step=moments.append)
    assert {m.round for m in moments if m.phase == "noise"} == {2}
    assert same_file(target, unbroken[0])


def test_search_that_was_stopped_goes_on_where_it_was(model, source, unbroken, tmp_path):
    """The second noise of round 0 takes 20 steps in an unbroken run; its state is saved every second step."""
    target, moments, again = tmp_path / "w.safetensors", [], []
    steps = [n.steps for n in unbroken[1].history[0].noises]
    assert min(steps) > 7

    def stop(moment):
        moments.append(moment)
        if len(moments) == steps[0] + 1 + 8:  # before the update of step 7 of the second noise
            raise Stopped

    with pytest.raises(Stopped):
        finetune_model(model, source, CFG, target=target, on_step=stop)
    made = finetune_model(model, source, CFG, target=target, on_step=again.append)
    assert (moments[-1].phase, moments[-1].step) == ("noise", 7)
    assert again[0] == next(m for m in unbroken[2][steps[0] + 1 :] if m.step == 6)
    assert same_file(target, unbroken[0])
    assert timeless(made.history) == timeless(unbroken[1].history)
    assert files_in(tmp_path) == ["w.json", "w.jsonl", "w.safetensors"]


@pytest.mark.parametrize(
    "change", [dict(block=1, noise=replace(NOISE, eps=0.5)), dict(noises=1, groups=2)], ids=["block", "groups"]
)
@pytest.mark.parametrize("phase", ["search", "update"])
def test_deeper_and_grouped_noise_go_on_too(model, source, tmp_path, change, phase):
    """Stopped in the second search of round 1, after its first save, or between two updates."""
    cfg, seen = replace(CFG, rounds=2, steps=3, **change), []
    whole = finetune_model(model, source, cfg, target=tmp_path / "whole.safetensors")

    def stop(moment):
        seen.append(moment)
        second = [m.step for m in seen if (m.round, m.phase) == (1, "noise")].count(0) == 2
        if (moment.round, moment.phase, moment.step) == (1, "update", 2) or (
            phase == "search" and second and moment.step == 3
        ):
            raise Stopped

    target, again = tmp_path / "w.safetensors", []
    with pytest.raises(Stopped):
        finetune_model(model, source, cfg, target=target, on_step=stop)
    assert (seen[-1].phase == "noise") == (phase == "search")
    made = finetune_model(model, source, cfg, target=target, on_step=again.append)
    assert {m.round for m in again} == {1}
    assert same_file(target, tmp_path / "whole.safetensors")
    assert timeless(made.history) == timeless(whole.history)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES.keys() - {"nullspace"}))
def test_every_objective_goes_on(model, source, tmp_path, objective):
    """Attacks, second gradients, random noises and mixes are drawn again as an unbroken run draws them."""
    cfg = replace(CFG, objective=objective, rounds=2, attack_steps=2, noises=1, warm_start=0.0)
    finetune_model(model, source, cfg, target=tmp_path / "whole.safetensors")
    moments = []
    stopped(model, source, cfg, tmp_path / "w.safetensors")
    finetune_model(model, source, cfg, target=tmp_path / "w.safetensors", on_step=moments.append)
    assert {m.round for m in moments} == {1}
    assert same_file(tmp_path / "w.safetensors", tmp_path / "whole.safetensors")


@pytest.mark.parametrize("objective", ["nullspace", "madry"])
@pytest.mark.parametrize("phase", ["search", "updates"])
def test_bfloat16_goes_on_too(model, source, tmp_path, objective, phase):
    """As `auto` is on many CPUs: bit for bit there as well."""
    cfg = replace(CFG, objective=objective, rounds=2, precision="bfloat16", noises=1, warm_start=0.0)
    finetune_model(model, source, cfg, target=tmp_path / "whole.safetensors")
    target, moments = tmp_path / "w.safetensors", []
    search = phase == "search" and objective == "nullspace"
    stopped(model, source, cfg, target, (1, "noise", 1) if search else (1, "update", 3))
    finetune_model(model, source, cfg, target=target, on_step=moments.append)
    assert {m.round for m in moments} == {1}
    assert same_file(target, tmp_path / "whole.safetensors")


def test_a_second_run_of_a_target_waits_for_the_first(model, source, unbroken, tmp_path, capsys):
    target, moments, entered, go_on = tmp_path / "w.safetensors", [], Event(), Event()

    def hold(moment):
        entered.set()
        assert go_on.wait(60)

    with ThreadPoolExecutor(2) as runs:
        first = runs.submit(finetune_model, model, source, CFG, target=target, on_step=hold)
        assert entered.wait(60)
        second = runs.submit(finetune_model, model, source, CFG, target=target, on_step=moments.append)
        deadline, told = time.monotonic() + 60, ""
        while "waiting" not in told and time.monotonic() < deadline:
            told += capsys.readouterr().out
            time.sleep(0.05)
        go_on.set()
        assert told == f"{target} is being made by another process: waiting for it\n"
        assert second.result(60).history == first.result(60).history
    assert same_file(target, unbroken[0])
    assert moments == []  # it was found made


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    log = Log(tmp_path / "w.safetensors", Place())
    log.path.mkdir()
    with pytest.raises(OSError, match=r"w\.jsonl could not be written .*make room, and start again to go on"):
        log.write(0, Round())


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("half a li")])
def test_the_log_of_a_run_that_goes_on_has_all_rounds(model, source, unbroken, tmp_path, damage):
    target = tmp_path / "w.safetensors"
    stopped(model, source, CFG, target, (1, "update", 2))
    damage(target.with_suffix(".jsonl"))
    finetune_model(model, source, CFG, target=target)
    ours, theirs = (
        [json.loads(line) for line in t.with_suffix(".jsonl").read_text().splitlines()] for t in (target, unbroken[0])
    )
    assert [line["round"] for line in ours] == list(range(CFG.rounds))
    assert [line["losses"] for line in ours] == [line["losses"] for line in theirs]


def test_search_of_another_run_is_not_gone_on_with(model, source, unbroken, tmp_path):
    target, other = tmp_path / "w.safetensors", tmp_path / "other.safetensors"
    stopped(model, source, replace(CFG, seed=5), other, (0, "noise", 5))
    other.with_suffix(".search.pt").rename(target.with_suffix(".search.pt"))
    finetune_model(model, source, CFG, target=target)
    assert same_file(target, unbroken[0])


@pytest.mark.parametrize("failing", ["noises", "the first update"])
@pytest.mark.parametrize("mistake", [RuntimeError, AttributeError])  # memory; an objective of one's own
def test_what_failed_for_its_settings_leaves_no_state(model, source, tmp_path, monkeypatch, failing, mistake):
    """There is nothing to go on with, and the settings that would mend it would be refused."""
    target = tmp_path / "w.safetensors"
    cfg = replace(CFG, objective="plain", augment="", mixup=0.0)
    name, cfg = ("find_noises", CFG) if failing == "noises" else ("metered", cfg)
    with monkeypatch.context() as patch:
        patch.setattr(rounds, name, lambda *a, **k: (_ for _ in ()).throw(mistake("out of memory")))
        with pytest.raises(mistake, match="out of memory"):
            finetune_model(model, source, cfg, target=target)
    assert set(files_in(tmp_path)) <= {"w.jsonl"}
    finetune_model(model, source, replace(cfg, rounds=1, steps=1, batch=4), target=target)


def test_what_fails_later_keeps_its_state(model, source, tmp_path, monkeypatch):
    target = tmp_path / "w.safetensors"

    def fails(moment):
        if (moment.round, moment.step) == (0, 4):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        finetune_model(model, source, replace(CFG, objective="plain"), target=target, on_step=fails)
    assert "w.training.pt" in files_in(tmp_path)


def test_changed_settings_are_refused_before_the_first_noise_is_found(model, source, tmp_path):
    stopped(model, source, CFG, tmp_path / "w.safetensors", (0, "noise", 0))
    with pytest.raises(ValueError, match=r"other settings: finetune\.lr was 0\.001, is 0\.002;"):
        finetune_model(model, source, replace(CFG, lr=2e-3), target=tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dict(lr=2e-3), r"finetune\.lr was 0\.001, is 0\.002;"),
        (dict(seed=3, rounds=4), r"finetune\.rounds was 3, is 4; finetune\.seed was 0, is 3;"),
        (dict(noise=replace(NOISE, eps=0.1)), r"finetune\.noise\.eps was 0\.05, is 0\.1;"),
    ],
)
def test_changed_settings_are_refused_with_the_differences(model, source, tmp_path, change, told):
    state = stopped(model, source, CFG, tmp_path / "w.safetensors")
    before = state.read_bytes()
    with pytest.raises(
        ValueError,
        match=rf"training\.pt was made with other settings: {told} with these as they were it",
    ):
        finetune_model(model, source, replace(CFG, **change), target=tmp_path / "w.safetensors")
    assert state.read_bytes() == before


def test_how_often_it_saves_may_change(model, source, unbroken, tmp_path):
    target, moments = tmp_path / "w.safetensors", []
    stopped(model, source, CFG, target)
    finetune_model(model, source, replace(CFG, checkpoint_every=1), target=target, on_step=moments.append)
    assert moments[0].round == 1
    assert same_file(target, unbroken[0])
    assert finetune_model(model, source, replace(CFG, checkpoint_every=3), target=target).history


def test_attacks_may_change_where_there_are_none(model, source, tmp_path):
    target, stronger = tmp_path / "w.safetensors", dict(attack_eps=0.1, attack_steps=9, attack_precision="bfloat16")
    finetune_model(model, source, CFG, target=target)
    assert finetune_model(model, source, replace(CFG, **stronger), target=target).history
    other = tmp_path / "madry.safetensors"
    finetune_model(model, source, replace(CFG, objective="madry", rounds=1), target=other)
    with pytest.raises(ValueError, match=r"finetune\.attack_eps was .*finetune\.attack_precision was 'auto'"):
        finetune_model(model, source, replace(CFG, objective="madry", rounds=1, **stronger), target=other)


def test_another_number_of_processes_is_refused(model, source, tmp_path):
    """Each draws augmentations and attacks of its own: two would not end with the weights of one."""
    stopped(model, source, CFG, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="other settings: processes was 1, is 2;"):
        finetune_model(model, source, CFG, target=tmp_path / "w.safetensors", share=Share(rank=0, count=2))


def test_other_weights_and_other_data_are_refused(model, source, tmp_path):
    stopped(model, source, CFG, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"other settings: weights was '\w+', is '\w+';"):
        finetune_model(make_vit("shapes_vit", **TINY), source, CFG, target=tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"other settings: data\.seed was 0, is 1;"):
        finetune_model(model, ShapesSource(DataConfig(seed=1), model), CFG, target=tmp_path / "w.safetensors")


def test_another_precision_is_refused_also_where_the_device_chose_it(model, source, tmp_path, monkeypatch):
    """A run that began under `auto` in one precision goes on in no other; one that names what `auto` chose does."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)  # a CPU without bfloat16
    auto, half = (replace(CFG, precision=name) for name in ("auto", "bfloat16"))
    target = tmp_path / "w.safetensors"
    stopped(model, source, half, target, (0, "noise", 0))
    with pytest.raises(ValueError, match=r"other settings: finetune\.precision was 'bfloat16', is 'float32';"):
        finetune_model(model, source, auto, target=target)
    finetune_model(model, source, half, target=target)
    other = tmp_path / "other.safetensors"
    stopped(model, source, auto, other, (0, "noise", 0))
    finetune_model(model, source, CFG, target=other)


def test_differences_by_hand():
    saved = {"a": 1, "b": {"c": [1], "d": None}, "gone": 0}
    now = {"a": 1, "b": {"c": [2], "d": None}, "new": "x"}
    assert changed_settings(saved, now) == ["b.c was [1], is [2]", "gone was 0, is None", "new was None, is 'x'"]
    assert changed_settings(saved, saved) == []


def stop_at(*place):
    """For on_step: stops a run at (round, phase, step)."""

    def look(moment):
        if (moment.round, moment.phase, moment.step) == place:
            raise Stopped

    return look


@pytest.mark.parametrize("content", [b"", b"half of a file"])
@pytest.mark.parametrize(
    ("name", "remedy"), [("w.training.pt", "to start anew"), ("w.search.pt", "to begin this search anew")]
)
def test_damaged_state_is_named(model, source, tmp_path, name, remedy, content):
    target = tmp_path / "w.safetensors"
    with pytest.raises(Stopped):
        finetune_model(model, source, CFG, target=target, on_step=stop_at(0, "noise", 2))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"saved state .*{name} cannot be read .*remove it {remedy}"):
        finetune_model(model, source, CFG, target=target)


def test_a_search_whose_state_was_removed_is_forgotten(model, source, tmp_path):
    """It would keep a later run that fails for its settings from leaving nothing behind."""
    target, wrong = tmp_path / "w.safetensors", replace(CFG, noises=1, groups=9, warm_start=0)
    with pytest.raises(Stopped):
        finetune_model(model, source, CFG, target=target, on_step=stop_at(0, "noise", 2))
    assert files_in(tmp_path) == ["w.search.pt", "w.training.pt"]
    (tmp_path / "w.training.pt").unlink()
    with pytest.raises(ValueError, match=r"group \d of 9"):
        finetune_model(model, source, replace(wrong, pool=4), target=target)
    assert files_in(tmp_path) == []


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from nslib.config import *
from nslib.data.source import ShapesSource
from nslib.finetune.rounds import finetune_model
from nslib.models import build_model

model = build_model("shapes_vit", **{tiny}).eval()
source = ShapesSource(DataConfig(), model)

def fill(moment):
    if moment.step == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

cfg = FinetuneConfig(objective="plain", rounds=1, steps=9, batch=8, pool=4, heldout=4, checkpoint_every=2)
try:
    finetune_model(model, source, cfg, target=Path(sys.argv[1]), on_step=fill)
except OSError as error:
    print("OSError", error)
"""


def test_full_disk_keeps_the_last_good_state(tmp_path):
    target = tmp_path / "w.safetensors"
    code = FULL_DISK.format(tiny=TINY)
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "w.training.pt could not be written" in done.stdout
    assert done.stdout.startswith("OSError")
    assert files_in(tmp_path) == ["w.training.pt"]
    saved = torch.load(target.with_suffix(".training.pt"), weights_only=True)
    assert saved["place"]["step"] == 2


def test_without_a_target_nothing_is_written(model, source, unbroken, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = finetune_model(model, source, CFG)
    assert list(tmp_path.iterdir()) == []
    saved = load_file(unbroken[0])
    assert all(torch.equal(saved[n], w) for n, w in made.model.vit.state_dict().items())


def test_updates_are_saved_before_the_round_is_measured(model, source, unbroken, tmp_path):
    """Measuring may take longer than the round."""
    target, moments = tmp_path / "w.safetensors", []

    def stopped(number, model):
        if number == 1:
            raise Stopped

    with pytest.raises(Stopped):
        finetune_model(model, source, CFG, target=target, on_round=stopped)
    saved = torch.load(tmp_path / "w.training.pt", weights_only=True)
    assert (saved["place"]["round"], saved["place"]["step"]) == (1, CFG.steps)
    made = finetune_model(model, source, CFG, target=target, on_step=moments.append, on_round=lambda k, m: {"k": k})
    assert {m.round for m in moments} == {2}
    assert [r.measured for r in made.history] == [{}, {"k": 1}, {"k": 2}]
    assert same_file(target, unbroken[0])


def test_a_run_without_noise_is_saved_once_a_round(model, source, tmp_path, monkeypatch):
    saves, save = [], rounds.StateFile.save
    monkeypatch.setattr(rounds.StateFile, "save", lambda self, *args: saves.append(1) or save(self, *args))
    cfg = replace(CFG, objective="plain", rounds=2, checkpoint_every=99, warm_start=0)
    finetune_model(model, source, cfg, target=tmp_path / "w.safetensors")
    assert len(saves) == 3  # the beginning too


def test_a_run_goes_on_with_a_copy_of_its_folder(model, image_tree, tmp_path):
    """Copied to the disk of another machine, where images have other times."""
    target, cfg = tmp_path / "w.safetensors", replace(CFG, objective="plain", pool=2, heldout=2, batch=4, rounds=1)
    (image_tree / "val").rename(image_tree / "train")
    own = make_vit("shapes_vit", **TINY | {"num_classes": 1000})
    copy = shutil.copytree(image_tree, tmp_path / "copy", copy_function=shutil.copyfile)
    first, second = (FolderSource(DataConfig("folder", root=root), own) for root in (image_tree, copy))
    assert first.identity("train") != second.identity("train")
    with pytest.raises(Stopped):
        finetune_model(own, first, cfg, target=target, on_step=stop_at(0, "update", 3))
    moments = []
    finetune_model(own, second, cfg, target=target, on_step=moments.append)
    assert [m.step for m in moments] == [3, 4, 5]
    finetune_model(own, first, cfg, target=target, on_step=lambda moment: pytest.fail("made again"))
    assert "times" not in target.with_suffix(".json").read_text()


def test_files_that_the_run_will_need_are_read_before_it_begins(image_tree, tmp_path):
    """One of a later update, not those that no update sees; a run that goes on looks at none again."""
    cfg = replace(CFG, objective="plain", pool=1, heldout=1, batch=2, rounds=2, steps=2)
    (image_tree / "val").rename(image_tree / "train")
    own = make_vit("shapes_vit", **TINY | {"num_classes": 1000})
    source = FolderSource(DataConfig("folder", root=image_tree), own)
    moments, opened, asked = [], source.open("train"), []
    check, pick = opened.check, source.pick
    opened.check = lambda rows: asked.extend(rows) or check(rows)
    source.pick = lambda split, rows: asked.extend(rows) or pick(split, rows)
    finetune_model(own, source, cfg)
    told, seen = asked[:10], asked[10:]
    assert told == [0, 1, *seen]
    last = opened.files[seen[-1]][0]
    whole = last.read_bytes()
    last.write_bytes(whole[:-2])
    with pytest.raises(OSError, match=rf"1 of 10 images are unreadable .*{last.name}.*more than 8 bits a channel$"):
        finetune_model(own, source, cfg, target=tmp_path / "w.safetensors", on_step=moments.append)
    assert not moments
    assert not files_in(tmp_path)[1:]  # beside the folder of images
    last.write_bytes(whole)
    with pytest.raises(Stopped):
        finetune_model(own, source, cfg, target=tmp_path / "w.safetensors", on_step=stop_at(1, "update", 1))
    del asked[:]
    finetune_model(own, source, cfg, target=tmp_path / "w.safetensors")
    assert 0 not in asked


def test_measurements_of_noises_that_are_found_are_kept(model, source, tmp_path):
    target, asked = tmp_path / "w.safetensors", []

    def measure(k, model, noises):
        asked.append(k)
        return {"k": k}

    with pytest.raises(Stopped):
        finetune_model(model, source, CFG, target=target, on_step=stop_at(1, "update", 2), on_noise=measure)
    made = finetune_model(model, source, CFG, target=target, on_noise=measure)
    assert asked == [0, 1, 2]
    assert [r.influence for r in made.history] == [{"k": 0}, {"k": 1}, {"k": 2}]
    assert finetune_model(model, source, CFG, target=target).history == made.history


def test_measurements_of_rounds_that_are_done_are_kept(model, source, tmp_path, monkeypatch):
    target, asked = tmp_path / "w.safetensors", []

    def measure(k, model):
        asked.append(k)
        return {"k": k}

    def stop(moment):
        if moment.round == 1:
            raise Stopped

    with pytest.raises(Stopped):
        finetune_model(model, source, CFG, target=target, on_step=stop, on_round=measure)
    made = finetune_model(model, source, CFG, target=target, on_round=measure)
    assert asked == [0, 1, 2]
    assert [r.measured for r in made.history] == [{"k": 0}, {"k": 1}, {"k": 2}]
    monkeypatch.setattr(rounds, "Trainer", None)
    assert finetune_model(model, source, CFG, target=target).history == made.history
