"""Results computed once and files that are whole or not there, also after a kill and on a full disk."""

import dataclasses
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL
from filelock import FileLock

from nslib.config import NoiseConfig
from nslib.finetune.cut import cut_at
from nslib.models import build_model, load_model
from nslib.runtime import atomic_path, figures_path, pick_device, run_record, store_path, to_json, versions, write_text
from nslib.settings import Settings
from nslib.store import cached, digest, model_digest, tensor_digest
from nslib.vit.staged import renormalised
from nslib.vit.weights import save_weights


class Counter:
    """A computation that counts its calls."""

    def __init__(self, **values):
        self.values, self.calls = values, 0

    def __call__(self) -> dict:
        self.calls += 1
        return self.values


def start(code: str, **kwargs) -> subprocess.Popen:
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], **pipes, **kwargs)


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def entries() -> list[str]:
    """What the store shows under final names."""
    return [str(p.relative_to(store_path())) for p in store_path().glob("*/*") if p.is_dir() and p.name[0] != "."]


# Computed once


def test_values_come_back_as_they_were():
    tensors = {"noise": torch.randn(1, 4, 6), "counts": torch.arange(5), "half": torch.ones(2, dtype=torch.float16)}
    plain = {"norm": 1.5, "steps": 3, "trace": {"gap": [0.1, 0.2]}, "name": "ViT µ", "none": None}
    for _ in range(2):
        found = cached("noise", {"seed": 0}, lambda: tensors | plain, version=1)
        assert {k: found[k] for k in plain} == plain
        for name, tensor in tensors.items():
            assert torch.equal(found[name], tensor)
            assert found[name].dtype == tensor.dtype


def test_same_key_is_computed_once():
    compute = Counter(x=1)
    for _ in range(3):
        assert cached("a", {"seed": 0, "cfg": {"lr": 0.1, "eps": None}}, compute, version=1) == {"x": 1}
    assert cached("a", {"cfg": {"eps": None, "lr": 0.1}, "seed": 0}, compute, version=1) == {"x": 1}  # in any order
    assert compute.calls == 1


@pytest.mark.parametrize(
    "other", [dict(kind="b"), dict(key={"seed": 1}), dict(key={"seed": 0, "more": 0}), dict(version=2)]
)
def test_another_key_is_computed_anew(other):
    first, second = Counter(x=1), Counter(x=2)
    base = dict(kind="a", key={"seed": 0}, version=1)
    cached(**base, compute=first)
    assert cached(**(base | other), compute=second) == {"x": 2}
    assert cached(**base, compute=second) == {"x": 1}


def test_entry_says_what_it_is():
    cached("noise", {"seed": 7}, Counter(x=1, t=torch.ones(1)), version=3)
    (entry,) = store_path().glob("noise/*/entry.json")
    assert json.loads(entry.read_text()) == {
        "key": {"kind": "noise", "version": 3, "seed": 7},
        "values": {"x": 1},
    }


def test_computation_that_fails_leaves_nothing():
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cached("a", {}, fail, version=1)
    with pytest.raises(TypeError, match="cannot record a object: convert it to numbers"):
        cached("a", {}, Counter(x=object()), version=1)
    assert entries() == []
    assert not list(store_path().rglob("*.partial"))
    assert cached("a", {}, Counter(x=1), version=1) == {"x": 1}


@pytest.mark.parametrize("file", ["entry.json", "tensors.safetensors"])
@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-3])])
def test_entry_that_cannot_be_read_is_named(file, damage):
    cached("a", {}, Counter(x=1, t=torch.ones(4)), version=1)
    (entry,) = entries()
    damage(store_path() / entry / file)
    with pytest.raises(OSError, match=rf"stored result .*{entry} cannot be read .*: remove that folder to compute"):
        cached("a", {}, Counter(x=2), version=1)


CACHE_SLOWLY = """
    import os, sys, time
    from pathlib import Path
    from nslib.store import cached

    def compute():
        with open(sys.argv[1], "a") as log:
            log.write("computed\\n")
        time.sleep(1)
        return {"x": 42}

    Path(sys.argv[2]).touch()  # ready: wait for the other
    while len(list(Path(sys.argv[2]).parent.glob("ready*"))) < 2:
        time.sleep(0.01)
    print(cached("a", {"seed": 0}, compute, version=1)["x"])
"""


def test_two_processes_compute_once(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(CACHE_SLOWLY), str(tmp_path / "log")]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    both = [subprocess.Popen([*command, str(tmp_path / f"ready{i}")], **pipes) for i in range(2)]
    assert [finish(p).strip() for p in both] == ["42", "42"]
    assert (tmp_path / "log").read_text() == "computed\n"


def test_killed_while_writing():
    """The kill comes when half of the entry's files are there."""
    process = start("""
        import os, signal
        import nslib.store as store
        store.save_file = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        store.cached("a", {}, lambda: {"x": 1}, version=1)
    """)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert list(store_path().rglob("entry.json"))  # it had begun
    assert entries() == []
    compute = Counter(x=2)
    assert cached("a", {}, compute, version=1) == {"x": 2}
    assert compute.calls == 1
    assert not list((store_path() / "a").glob(".*.partial"))
    (folder,) = (path for path in (store_path() / "a").iterdir() if path.is_dir())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755  # a store may be shared


FULL_DISK = """
    import resource, sys, torch
    from pathlib import Path
    from nslib.runtime import write_text
    from nslib.store import cached

    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    def attempt(action):
        try:
            action()
        except OSError as error:
            print("OSError", error)

    attempt(lambda: cached("a", {}, lambda: {"x": 1, "t": torch.ones(10_000)}, version=1))
    attempt(lambda: cached("a", {"b": 1}, lambda: {"x": "y" * 20_000}, version=1))
    attempt(lambda: write_text(Path(sys.argv[1]), "y" * 20_000))
"""


def test_full_disk_leaves_no_half_file(tmp_path):
    old = write_text(tmp_path / "table.csv", "old")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(old)], capture_output=True, text=True, timeout=120
    )
    assert old.read_text() == "old"
    assert entries() == []
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]
    assert not list(store_path().rglob("*.partial"))
    assert done.returncode == 0, done.stderr  # every failure was an OSError ...
    tensors, plain, text = done.stdout.splitlines()
    assert str(store_path() / "a") in tensors  # ... that names the place
    assert str(store_path() / "a") in plain
    assert "table.csv" in text


# Digests


def test_digest_tells_values_apart_and_orders_together():
    values = [{"a": 1}, {"a": 1.5}, {"a": "1"}, {"b": 1}, [1], [], None, NoiseConfig(), NoiseConfig(lr=0.2), Settings()]
    assert len({digest(v) for v in values}) == len(values)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert len(digest({})) == 16


def test_tensor_digest_sees_values_shape_and_type():
    t = torch.arange(6.0)
    different = [t, t + 1e-6 * (t == 3), t.reshape(2, 3), t.reshape(3, 2), t.double(), t.to(torch.int32)]
    assert len({tensor_digest(d) for d in different}) == len(different)
    assert tensor_digest(t, t) != tensor_digest(t)
    strided = torch.arange(12.0).reshape(6, 2)[:, 0]
    assert tensor_digest(strided) == tensor_digest(strided.contiguous())
    assert tensor_digest(torch.tensor(1.0), torch.empty(0, 3)) != tensor_digest(torch.tensor(1.0))


def test_model_digest_follows_the_weights():
    model = load_model("shapes_vit", "random")
    before = model_digest(model)
    assert before == model_digest(load_model("shapes_vit", "random"))
    with torch.no_grad():
        model.vit.head.bias[0] += 1
    assert model_digest(model) != before


def test_model_digest_follows_what_no_weight_tells(tmp_path):
    """Eight heads of sixteen numbers and four of thirty-two have the same weights, and other logits."""
    model, other = load_model(), load_model(num_heads=8)
    images = torch.rand(2, *model.image_shape)
    assert not torch.allclose(model(images), other(images), atol=1e-2)
    mean, std = (0.4,) * 3, (0.2,) * 3
    save_weights(renormalised(model, mean=mean, std=std), tmp_path / "w.safetensors")
    torch.save(
        {"0.mean": torch.tensor(mean), "0.std": torch.tensor(std)}
        | {f"1.{k}": v for k, v in model.vit.state_dict().items()},
        tmp_path / "w.pth",
    )
    ways = {
        "shipped": lambda **given: load_model(**given),
        "random": lambda **given: load_model(weights="random", **given),
        "file with a normalisation": lambda **given: load_model(weights=tmp_path / "w.safetensors", **given),
        "checkpoint": lambda **given: load_model("shapes_vit", tmp_path / "w.pth", **given),
        "renormalised": lambda **given: renormalised(load_model(**given), mean=mean, std=std),
        "cut": lambda **given: cut_at(load_model(**given), 2),
        "copy": lambda **given: deepcopy(load_model(**given)),
    }
    for way, made in ways.items():
        assert model_digest(made()) == model_digest(made()), way
        assert model_digest(made(num_heads=8)) == model_digest(made(num_heads=8)) != model_digest(made()), way


def test_model_digest_of_ordinary_models_is_that_of_records_kept():
    """Also where the number of classes and the size are given, which weights tell, or weights are fetched."""
    kept = json.loads((ROOT / "figures/full/records/jobs/shapes_vit_plain_seed0.json").read_text())["config"]["weights"]
    assert model_digest(load_model()) == kept
    assert model_digest(load_model(num_classes=10, img_size=48)) == kept
    fetched = build_model("vit_tiny_patch16_224", **SMALL, pretrained=False, pretrained_cfg_overlay={"url": "far"})
    assert fetched.architecture == {"embed_dim": 48, "depth": 2, "num_heads": 3}


# Atomic files


def test_file_appears_when_it_is_whole(tmp_path):
    final = tmp_path / "new" / "table.csv"
    with atomic_path(final) as partial:
        assert partial.parent == final.parent  # the same disk, so that a rename is atomic
        assert partial.suffix == ".csv"
        partial.write_text("whole")
        assert not final.exists()
    assert final.read_text() == "whole"
    assert [p.name for p in final.parent.iterdir()] == ["table.csv"]
    assert final.stat().st_mode & 0o777 == 0o644


def test_error_leaves_the_old_file(tmp_path):
    final = write_text(tmp_path / "table.csv", "old")

    def write_half():
        with atomic_path(final) as partial:
            partial.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert final.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_of_a_link_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    link, there = tmp_path / "table.csv", tmp_path / "disk" / "table.csv"
    link.symlink_to(there)
    for text in ("first", "second"):
        write_text(link, text)
        assert link.is_symlink()
        assert there.read_text() == text


def test_no_room_for_even_a_name(tmp_path):
    """A folder is a file: no room would help."""
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(OSError, match=r"numbers\.json could not be written \(.*\): take a folder in which"):
        write_text(tmp_path / "folder" / "numbers.json", "{}")


def test_kill_leaves_the_old_file(tmp_path):
    final = write_text(tmp_path / "table.csv", "old")
    process = start(f"""
        import os, signal
        from pathlib import Path
        from nslib.runtime import atomic_path
        with atomic_path(Path({str(final)!r})) as partial:
            partial.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert final.read_text() == "old"
    leftovers = [p.name for p in tmp_path.iterdir() if p != final]
    assert all(".partial" in name for name in leftovers)  # which git ignores


# Records


def test_json_of_what_a_record_holds():
    value = {
        "cfg": NoiseConfig(steps=5),
        "path": Path("/home/someone/imagenet"),
        "number": np.float32(0.5),
        "count": np.int64(3),
        "tuple": (1, 2),
    }
    read = json.loads(to_json(value))
    assert read["cfg"] == dataclasses.asdict(NoiseConfig(steps=5))
    assert read["path"] == "imagenet"  # which folder, not whose
    assert (read["number"], read["count"], read["tuple"]) == (0.5, 3, [1, 2])
    assert to_json({"b": 1, "a": 2}) == to_json({"a": 2, "b": 1})


@pytest.mark.parametrize("value", [object(), torch.ones(3), np.ones(3), {1, 2}])
def test_json_of_anything_else_is_refused(value):
    with pytest.raises(TypeError, match=r"cannot record a .*: convert it to numbers, strings, lists or dicts"):
        to_json({"x": value})


def test_record_tells_how_a_result_was_made():
    record = run_record(Settings(), n=5)
    assert record["config"]["synthesis"]["noise"]["steps"] == Settings().synthesis.noise.steps
    assert record["versions"] == versions()
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert record["n"] == 5
    assert record["hardware"]["cpus"] == os.cpu_count()
    assert json.loads(to_json(record)) == record


def test_store_and_figures_go_where_the_environment_says(folders):
    assert store_path() == folders / "store"
    assert figures_path("smoke") == folders / "figures" / "smoke"


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "meta"])
def test_device_that_is_not_there(name):
    with pytest.raises(ValueError, match=f"device '{name}' cannot be used here .*: pass auto, cpu, cuda or mps"):
        pick_device(name)


def test_a_store_that_may_only_be_read_gives_what_it_holds(monkeypatch):
    held = cached("kind", {"a": 1}, lambda: {"value": 1}, version=1)

    def read_only(self, *args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(FileLock, "acquire", read_only)
    assert cached("kind", {"a": 1}, lambda: {"value": 2}, version=1) == held
    with pytest.raises(OSError, match=r"no results can be kept in .*kind .*Read-only.*: set NSLIB_STORE to another"):
        cached("kind", {"a": 2}, lambda: {"value": 2}, version=1)
