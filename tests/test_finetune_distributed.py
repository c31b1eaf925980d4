"""Two processes learn the same noise and the same weights, those of one process for the same global batch."""

import json
import os
import socket
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, TINY, make_vit
from safetensors.torch import load_file

from nslib.config import DataConfig, FinetuneConfig, NoiseConfig
from nslib.data.source import ShapesSource
from nslib.finetune import rounds
from nslib.finetune.noises import find_noises
from nslib.finetune.rounds import finetune_model
from nslib.machine.makers import only_maker
from nslib.machine.processes import ALONE, processes

NOISE = NoiseConfig(limit=1.0, lr=0.05, steps=100, batch=16, eps=0.005)
CFG = FinetuneConfig(
    precision="float32", rounds=1, steps=3, batch=8, lr=1e-3, lr_min=1e-5, pool=32, heldout=16, noise=NOISE
)
RUNS = {
    "paper": CFG,
    "block": replace(CFG, block=1, noise=replace(NOISE, eps=0.05)),
    "groups": replace(CFG, groups=2, noise=replace(NOISE, batch=8)),
    "warm": replace(CFG, rounds=2, warm_start=1.1),
    "random": replace(CFG, objective="random_boundary"),
    "sam": replace(CFG, objective="sam", ema=0.9),
}
LEARNED = [name for name, cfg in RUNS.items() if cfg.objective == "nullspace" and not cfg.warm_start]


def double_precision_model():
    model = make_vit("shapes_vit", **TINY).double()
    with torch.no_grad():
        model.vit.head.weight *= 20
    return model


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
torch.set_num_threads(1)
from nslib.data.source import ShapesSource
from nslib.finetune import rounds
from nslib.machine.processes import processes
from test_finetune_distributed import RUNS, DataConfig, double_precision_model, watch_noise

folder = Path(sys.argv[1])
with processes("cpu") as (share, device):
    assert share.count == 2
    model = double_precision_model().to(device)
    for name, cfg in RUNS.items():
        noises = watch_noise()
        made = rounds.finetune_model(model, ShapesSource(DataConfig(), model), cfg, share=share,
                                     target=folder / f"{{name}}.safetensors")
        torch.save({{"weights": made.model.vit.state_dict(), "noises": noises, "record": made.record["processes"],
                    "losses": made.history[-1].losses, "steps": [n.steps for n in made.history[-1].noises],
                    "units": made.record["units"]}}, folder / f"{{name}}{{share.rank}}.pt")
assert not torch.distributed.is_initialized()
try:
    with processes("cpu"):
        raise AssertionError("a second group")
except RuntimeError as error:
    assert "put all that computes into one `with`" in str(error)
"""


def watch_noise() -> list[torch.Tensor]:
    """The noises that rounds find from now on, collected."""
    found = []

    def watched(*args, **kwargs):
        noise, facts = find_noises(*args, **kwargs)
        found.append(noise)
        return noise, facts

    rounds.find_noises = watched
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes ended with."""
    folder = tmp_path_factory.mktemp("both")
    script = folder / "script.py"
    script.write_text(SCRIPT.format(tests=str(ROOT / "tests")))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*command, str(script), str(folder)], capture_output=True, text=True, timeout=250,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, {n: [torch.load(folder / f"{n}{r}.pt", weights_only=True) for r in (0, 1)] for n in RUNS}


@pytest.mark.parametrize("name", RUNS)
def test_ranks_end_with_the_same_noise_and_weights(both, name):
    first, second = both[1][name]
    assert len(first["noises"]) == len(second["noises"])
    assert all(map(torch.equal, first["noises"], second["noises"]))
    assert all(torch.equal(first["weights"][n], second["weights"][n]) for n in first["weights"])
    assert first["losses"] == second["losses"]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_are_one_for_the_same_global_batch(both, monkeypatch, name):
    found, _ = both[1][name]
    monkeypatch.setattr(rounds, "find_noises", find_noises)  # put back what watch_noise replaces
    noises = watch_noise()
    model = double_precision_model()
    made = finetune_model(model, ShapesSource(DataConfig(), model), RUNS[name])
    assert [n.steps for n in made.history[-1].noises] == found["steps"]
    for ours, theirs in zip(noises, found["noises"], strict=True):
        assert ours.dtype == torch.float64
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-9)
    assert found["losses"] == pytest.approx(made.history[-1].losses, rel=0, abs=1e-9)
    for n, w in made.model.vit.state_dict().items():
        assert torch.allclose(w, found["weights"][n], rtol=0, atol=1e-9), n
        assert w.dtype == torch.float64
    assert not torch.equal(made.model.vit.head.weight, model.vit.head.weight)


@pytest.mark.parametrize("name", LEARNED)
def test_noise_was_learned_for_several_steps(both, name):
    found, _ = both[1][name]
    assert min(found["steps"]) >= 3


def test_one_of_them_writes(both):
    folder, found = both
    names = {p.name for p in folder.glob("paper*") if p.suffix != ".tensorboard"}
    assert names == {"paper.safetensors", "paper.json", "paper.jsonl", "paper0.pt", "paper1.pt"}
    rounds = [json.loads(line)["round"] for line in (folder / "paper.jsonl").read_text().splitlines()]
    assert rounds == list(range(RUNS["paper"].rounds))
    assert len(list((folder / "paper.tensorboard").iterdir())) == 1
    assert found["paper"][0]["record"] == 2


def test_work_is_counted_over_all_processes(both):
    found, _ = both[1]["paper"]
    assert found["units"]["updates"] == 3 * 8 * 6


TWO_MACHINES = """
import sys
sys.path.insert(0, {tests!r})
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from nslib.data.source import ShapesSource
from nslib.finetune.rounds import finetune_model
from nslib.machine.processes import processes
from test_finetune_distributed import CFG, DataConfig, double_precision_model

class Stopped(Exception):
    pass

def stop(moment):
    if (moment.round, moment.phase, moment.step) == (1, "update", 2):
        raise Stopped

folder = Path(sys.argv[1])
with processes("cpu") as (share, device):
    model = double_precision_model().to(device)
    cfg, source = replace(CFG, rounds=2, checkpoint_every=1), ShapesSource(DataConfig(), model)

    def run(target=None, on_step=None):
        try:
            return finetune_model(model, source, cfg, share=share, target=target, on_step=on_step)
        except (Stopped, ValueError) as error:
            return error

    shared, mine = folder / "shared.safetensors", folder / f"machine{{share.rank}}" / "w.safetensors"
    assert isinstance(run(shared, stop), Stopped)
    seen = []
    gone_on, unbroken = run(shared, lambda m: seen.append((m.round, m.phase, m.step))), run()
    assert isinstance(run(mine, stop), Stopped)
    of_a_stop = str(run(mine))
    mine = mine.with_name("done.safetensors")
    run(mine)
    torch.save({{"gone_on": gone_on.model.vit.state_dict(), "unbroken": unbroken.model.vit.state_dict(), "seen": seen,
                "of_a_stop": of_a_stop, "of_the_end": str(run(mine))}}, folder / f"{{share.rank}}.pt")
"""


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """What each of two processes ended with, started as on two machines, each by a command of its own."""
    folder = tmp_path_factory.mktemp("machines")
    script = folder / "script.py"
    script.write_text(TWO_MACHINES.format(tests=str(ROOT / "tests")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
               "--rdzv-backend", "c10d", "--rdzv-id", "1", "--rdzv-endpoint", f"127.0.0.1:{port}",
               "--local-addr", "127.0.0.1", str(script), str(folder)]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) for _ in range(2)]
    told = [run.communicate(timeout=250)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], told[0][-3000:] + told[1][-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_two_machines_go_on_to_the_weights_of_an_unbroken_run(machines):
    for found in machines:
        assert found["seen"] == [(1, "update", 3)]
        assert all(torch.equal(w, found["gone_on"][n]) for n, w in found["unbroken"].items())


def test_two_machines_that_do_not_see_the_same_files(machines):
    for found in machines:
        where = "process 0 found 2 rounds with their noise and 2 updates of round 1, process 1 found no saved state"
        assert f"w.safetensors {where}: give a target that all of them can read" in found["of_a_stop"]
        assert "process 0 found a finished model, process 1 found none" in found["of_the_end"]


def test_several_processes_do_not_wait_for_another_run(tmp_path):
    target = tmp_path / "w.safetensors"
    with (
        only_maker(target, ALONE),
        pytest.raises(ValueError, match=r"w\.safetensors is being made by another run: wait for its end"),
        only_maker(target, replace(ALONE, count=2)),
    ):
        pass


def test_the_command_runs_under_torchrun(tmp_path):
    """With the losses of one process for the same global batch; the first alone writes and prints."""
    options = ["finetune", "--device", "cpu", "--set", "rounds=1", "steps=2", "batch=4", "pool=8",
               "heldout=4", "noise.batch=4", "noise.steps=3", "precision=float32"]  # fmt: skip

    def run(*launcher, name):
        target = tmp_path / f"{name}.safetensors"
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "nslib", *options, "--target", str(target)], capture_output=True,
            text=True, timeout=250, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        record = json.loads(target.with_suffix(".json").read_text())
        assert load_file(target)
        return record["rounds"][0]["losses"], record["processes"], done.stdout

    alone, one, _ = run(name="alone")
    both, two, printed = run("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", name="both")
    assert (one, two) == (1, 2)
    assert printed.count("images of standard training") == 1
    assert both == pytest.approx(alone, rel=1e-4)


def test_a_mistake_is_told_once_by_the_process_that_found_it(tmp_path):
    """The others end with it, and show no traceback of their own."""
    target = tmp_path / "w.safetensors"
    with only_maker(target):
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "nslib",
             "finetune", "--device", "cpu", "--target", str(target)],
            capture_output=True, text=True, timeout=250, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("w.safetensors is being made by another run: wait for its end") == 1
    assert "rank1]: Traceback" not in done.stderr


def test_alone_without_torchrun(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes("cpu") as (share, device):
        assert share == ALONE
        assert device == torch.device("cpu")


def test_accelerate_that_is_missing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with (
        pytest.raises(ModuleNotFoundError, match=r"this needs accelerate: pip install 'nslib\[distributed\]'"),
        processes(),
    ):
        pass


def test_processes_that_do_not_find_each_other():
    """As after an Accelerator that was made in the parent of a notebook's processes."""
    code = """
        import os
        from accelerate import Accelerator
        Accelerator(cpu=True)
        os.environ["WORLD_SIZE"] = "2"
        from nslib.machine.processes import processes
        try:
            with processes("cpu"):
                pass
        except RuntimeError as error:
            print(error)
    """
    alone = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120, env=alone
    )
    assert "2 processes were started and accelerate found 1: start with torchrun" in done.stdout, done.stderr
