"""The command line: exit codes, mistakes told in one line, and each command on something small."""

import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import nslib
from nslib import cli
from nslib.analysis.pictures import read_picture, write_picture
from nslib.cli import main
from nslib.cli.options import overrides
from nslib.data.shapes import render
from nslib.models import load_model, weights_path
from nslib.reproduce import DONE, FAILED, LEFT, SKIPPED, Outcome
from nslib.vit.weights import save_weights


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run `nslib ...` in an empty folder: (exit code, output, errors)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["nslib", *arguments])
        try:
            code = main()
        except SystemExit as leave:  # tyro's own: --help and what it cannot read
            code = leave.code
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


@pytest.fixture
def paper(monkeypatch):
    """The runner, replaced by a note of what it was asked for."""
    import nslib.reproduce as runner

    class Asked:
        outcomes = (Outcome("01_a", DONE, 1.0), Outcome("02_b", SKIPPED, 0.0))

        def __call__(self, *args, **kwargs):
            self.args, self.kwargs = args, kwargs
            return list(self.outcomes)

    asked = Asked()
    monkeypatch.setattr(runner, "reproduce", asked)
    return asked


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("reproduce", "--profile", "fast"),
            "laptop, full, gpu, imagenet, imagenet_small, got 'fast'",
        ),
        (("reproduce", "--set", "steps=3"), "no setting 'steps': Settings has"),
        (("reproduce", "--set", "images"), "--set takes NAME=VALUE, such as in --help, got 'images'"),
        (("reproduce", "99", "--profile", "smoke"), "no notebook '99': there are"),
        (("reproduce", "02", "--dry-run"), "--dry-run tells of a whole profile: name no notebooks, got 02"),
        (
            ("reproduce", "--imagenet", "x"),
            "--imagenet goes with --profile imagenet or imagenet_small, got",
        ),
        (("nulldim", "--weights", "none.safetensors"), "no weights at none.safetensors: pass a safetensors file"),
        (("nulldim", "--model", "vit_tiny", "--weights", "random"), "no model named 'vit_tiny'"),
        (("nulldim", "--model", "resnet18", "--weights", "random"), "expected a timm VisionTransformer"),
        (("nulldim", "--weights", "random", "--tol", "-1"), "tol must be >= 0, got -1"),
        (("noise", "--weights", "random", "--heldout", "0"), "0 < heldout"),
        (
            ("noise", "--weights", "random", "--pool", "2", "--heldout", "1", "--out", "n.json"),
            "--out must end in .safetensors, got n.json: its record goes beside it as .json",
        ),
        (("evaluate", "--columns", "clean", "--out", "w.json"), "--out must end in .csv, got w.json: its record goes"),
        (("noise", "--weights", "random", "--device", "gpu"), "pass auto, cpu, cuda or mps"),
        (
            ("noise", "--model", "vit_tiny_patch16_224", "--weights", "random", "--imagenet", "x"),
            "expected <root>/<split>/<wnid>/*.JPEG",
        ),
        (
            ("noise", "--weights", "random", "--imagenet", "x"),
            "no classes in x: expected <root>/<split>/<class>/*.JPEG",
        ),
        (("evaluate", "--columns", "clean,frog"), "no column 'frog': there are clean, patchfool"),
        (("evaluate", "--set", "suite.fgsm_eps=8"), "fgsm_eps must be in [0, 1], 8-bit levels divided by 255, got 8.0"),
        (
            ("evaluate", "--set", "suite.transfer_smoothing=8"),
            "transfer_smoothing must be an odd number of pixels, 1 for none, got 8",
        ),
        (("finetune", "--objective", "mystery"), "objective must be one of nullspace, nullspace_by_batch, permuted"),
        (
            ("finetune", "--model", "vit_tiny_patch16_224", "--imagenet", "x"),
            "--imagenet: no folder x; expected one with",
        ),
        (("reproduce", "--profile", "imagenet_small", "--imagenet", "x"), "--imagenet: no folder x; expected one with"),
        (("evaluate", "--set", "images=50"), "images changes nothing of this command, which reads suite., data., sur"),
        (
            ("evaluate", "--set", "images=50"),
            "models, weights, img_size, seed, device: take suite.images or data.images",
        ),
        (
            ("evaluate", "--model", "vit_tiny_patch16_224", "--weights", "random", "--columns", "clean"),
            "shapes has 10 classes and the head of vit_tiny_patch16_224 1000: name images of its own classes (",
        ),
        (("finetune", "--set", "epochs=3"), "no setting 'finetune.epochs'"),
        (("finetune", "--set", "finetune.rounds=0"), "rounds must be >= 1, got 0"),
        (("finetune", "--model", "vit_base_patch16_siglip_224", "--weights", "random"), "has no classifier: give it"),
        (("pretrain", "--set", "data.seed=7"), "data.seed changes nothing of this command, which reads pretrain."),
        (("disguise", "--source", "a.png", "--target", "b.png", "--out", "c.png"), "no picture at a.png"),
        (("evaluate", "--protocol", "paper"), "protocol must be pixels or authors, got 'paper'"),
        (("pretrain", "--profile", "fast"), "profile must be one of"),
        (("pretrain", "--set", "epochs=3"), "no setting 'pretrain.epochs'"),
        (("pretrain", "--set", "steps=0"), "steps must be >= 1, got 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_are_one_line(call, arguments, message):
    code, _, errors = call(*arguments)
    assert code == 2
    assert message in errors
    (line,) = errors.split("\r")[-1].splitlines()  # after a progress bar, which ends in a carriage return
    assert line.startswith("nslib: ")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("finetune", "--objective", "mystery"), "objective must be one of"),
        (("finetune", "--target", "w.pt"), "target"),
        (("evaluate", "--columns", "clean,frog"), "no column 'frog'"),
    ],
)
def test_what_the_arguments_show_to_be_wrong_is_told_before_a_model_is_made(call, monkeypatch, arguments, told):
    """Which may be trained from scratch, or fetched."""
    for name in ("open_model", "open_bench"):
        monkeypatch.setattr(f"nslib.study.experiment.{name}", lambda *_: pytest.fail("a model was made"))
    code, _, errors = call(*arguments)
    assert code == 2
    assert told in errors


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("reproduce", "--profil", "smoke"), "--profil"),
        (("noise", "--noise.step", "3"), "--noise.step"),
        (("noise", "--noise.eps", "3"), "eps must be a squared l2 gap in (0, 2], or None, got 3.0"),
        (("noise", "--pool", "many"), "many"),
        (("plot",), "plot"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_the_parser_refuses(call, arguments, told):
    """tyro tells it in a frame of its own."""
    code, _, errors = call(*arguments)
    assert code == 2
    assert told in " ".join(errors.replace("│", " ").split())
    assert "Traceback" not in errors
    assert "Warning" not in errors


def test_a_reader_that_has_enough_is_no_error():
    command = f"{sys.executable} -m nslib nulldim | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (141, "")  # as of any tool of Unix that SIGPIPE stops


def test_a_reader_that_has_enough_is_no_error_without_the_signal():
    """On Windows, whose Python has no SIGPIPE."""
    run = "import signal; del signal.SIGPIPE; import sys; from nslib.cli import main; sys.exit(main())"
    command = f"{sys.executable} -c '{run}' nulldim | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (141, "")


def test_traceback_on_request(call, monkeypatch):
    monkeypatch.setenv("NSLIB_TRACEBACK", "1")
    with pytest.raises(ValueError, match="profile must be one of"):
        call("reproduce", "--profile", "fast")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_want_of_memory_is_told_in_one_line(call, monkeypatch, error):
    def fails(**options):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "nulldim", fails)
    code, _, errors = call("nulldim")
    assert code == 2
    (line,) = errors.splitlines()
    assert line.startswith("nslib: out of memory: lower batch, pool or images, or take fewer --jobs (")


def test_the_end_of_another_process_is_told_with_what_torch_says(call, monkeypatch):
    """NCCL's faults of its own are errors of the same kind."""

    def fails(**options):
        raise torch.distributed.DistBackendError("Duplicate GPU detected : rank 0 and rank 1\nmore")

    monkeypatch.setitem(cli.COMMANDS, "nulldim", fails)
    code, _, errors = call("nulldim")
    assert code == 2
    assert "cannot be reached (Duplicate GPU detected : rank 0 and rank 1): its own words say why" in errors


def test_other_errors_of_torch_are_none_of_memory(call, monkeypatch):
    def fails(**options):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setitem(cli.COMMANDS, "nulldim", fails)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        call("nulldim")


def test_place_that_cannot_be_written_is_told_in_one_line(call, tmp_path):
    (tmp_path / "file").touch()
    arguments = "--weights random --pool 2 --heldout 1 --noise.steps 1 --out file/noise.safetensors"
    code, _, errors = call("noise", *arguments.split())
    assert code == 2
    (line,) = errors.split("\r")[-1].splitlines()
    assert line.startswith("nslib: ")
    assert "file" in line


@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("noise --weights random --pool 2 --heldout 1 --noise.steps 1 --out new.safetensors", "set NSLIB_STORE"),
        ("pretrain --set size=24 steps=1 batch=2 report_images=1 --target new.safetensors", "new.training.pt"),
    ],
    ids=["noise", "pretrain"],
)
def test_full_disk_is_told_in_one_line(command, place, tmp_path):
    """A limit on the size of files stands for a disk that fills up while the tensors are written."""
    done = subprocess.run(
        [sys.executable, "-B", "-m", "nslib", *command.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)),
    )
    assert done.returncode == 2, done.stderr
    line = done.stderr.replace("\r", "\n").splitlines()[-1]
    assert line.startswith("nslib: ")
    assert place in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["reproduce", "pretrain", "nulldim", "noise"])
def test_help_tells_what_each_option_is(call, command):
    code, text, _ = call(command, "--help")
    assert code == 0
    assert cli.COMMANDS[command].__doc__.splitlines()[0].split(";")[0][:30] in " ".join(text.split())
    assert command in call("--help")[1]


# reproduce


def test_ctrl_c_is_one_line(call, monkeypatch):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("nslib.reproduce.reproduce", stopped)
    assert call("reproduce") == (
        130,
        "",
        "\nnslib: stopped; the same command goes on from what was saved\n",
    )


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ((DONE, SKIPPED), 0),
        ((DONE, FAILED, DONE), 1),
        ((FAILED,), 1),
        ((SKIPPED,), 0),
        ((DONE, LEFT), 3),
        ((LEFT, FAILED), 1),
    ],
)
def test_exit_code_tells_whether_all_went_well(call, paper, statuses, code):
    paper.outcomes = [Outcome(f"0{i}_x", status, 0.0) for i, status in enumerate(statuses)]
    assert call("reproduce")[0] == code


def test_reproduce_hands_on_what_was_asked_for(call, paper, tmp_path):
    (tmp_path / "images").mkdir()
    call("reproduce", "01", "02", "--profile", "imagenet", "--imagenet", "images", "--weights", "random", "--force",
         "--run-name", "mine", "--device", "cpu", "--minutes", "9",
         "--set", "images=500", "synthesis.noise.lr=0.5")  # fmt: skip
    assert [list(paper.args[0]), paper.args[1]] == [["01", "02"], "imagenet"]
    assert paper.kwargs == {
        "run_name": "mine",
        "force": True,
        "minutes": 9,
        "jobs": 0,
        "overrides": {
            "data.root": str(tmp_path / "images"),  # notebooks run in another folder
            "weights": "random",
            "device": "cpu",
            "images": 500,
            "synthesis.noise.lr": 0.5,
        },
    }


def test_folders_of_the_environment_are_named_in_full(call, paper, monkeypatch, tmp_path):
    """Kernels run in another folder than the command."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "random").mkdir()
    given = {"STORE": "made/store", "FIGURES": "~/figures", "IMAGENET": "images", "WEIGHTS": "random"}
    for name, place in given.items():
        monkeypatch.setenv(f"NSLIB_{name}", place)
    assert call("reproduce")[0] == 0
    assert {name: os.environ[f"NSLIB_{name}"] for name in given} == {
        "STORE": str(tmp_path / "made" / "store"),
        "FIGURES": str(tmp_path / "home" / "figures"),
        "IMAGENET": str(tmp_path / "images"),
        "WEIGHTS": "random",  # a word, whatever lies there
    }
    monkeypatch.setenv("NSLIB_WEIGHTS", "weights")
    call("reproduce")
    assert os.environ["NSLIB_WEIGHTS"] == str(tmp_path / "weights")


def test_reproduce_by_default_is_all_at_laptop(call, paper):
    call("reproduce")
    assert [list(paper.args[0]), paper.args[1]] == [[], "laptop"]
    assert paper.kwargs == {"run_name": "", "overrides": {}, "force": False, "minutes": math.inf, "jobs": 0}


def test_settings_are_json_where_they_can_be():
    given = ["a=1", "b=0.5", "c=[1, 2]", "d=null", "e=text", "f=vit.tag=x", 'g="1"']
    assert overrides((given,), data__root="here", empty="") == {
        "a": 1, "b": 0.5, "c": [1, 2], "d": None, "e": "text", "f": "vit.tag=x", "g": "1", "data.root": "here",
    }  # fmt: skip


# The other commands


def test_nulldim(call):
    code, text, _ = call("nulldim", "--weights", "random")
    assert code == 0
    assert "patch (3, 12, 12) = 432 -> width 128" in text
    assert "rank 128 + null dimension 304 = 432" in text


def test_a_noise_replaces_no_weights(call, tmp_path):
    weights = tmp_path / "weights.safetensors"
    save_file(load_model(weights="random").vit.state_dict(), weights)
    before = weights.read_bytes()
    code, _, errors = call("noise", "--weights", str(weights), "--out", str(weights))
    assert code == 2
    assert "weights.safetensors holds other tensors than a noise" in errors
    assert weights.read_bytes() == before


def test_a_noise_replaces_no_record_of_another_kind(call, tmp_path):
    (tmp_path / "noise.json").write_text('{"hidden_size": 1}')
    code, _, errors = call("noise", "--weights", "random", "--out", str(tmp_path / "noise.safetensors"))
    assert code == 2
    assert "noise.json is no record of a run, and would be replaced: move it, or take another name" in errors


def test_places_where_nothing_can_be_written(call, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    code, _, errors = call("noise", "--weights", "random", "--out", "file/noise.safetensors")
    assert code == 2
    assert "--out file/noise.safetensors cannot be written (" in errors
    monkeypatch.setenv("NSLIB_STORE", str(tmp_path / "file"))
    code, _, errors = call(
        "finetune", "--weights", "random", "--target", "t.safetensors", "--set", "rounds=1", "steps=1"
    )
    assert code == 2
    assert "set NSLIB_STORE to another folder" in errors


def test_noise_is_saved_with_its_record(call, tmp_path):
    code, text, errors = call(
        "noise", "--weights", "random", "--pool", "12", "--heldout", "4", "--seed", "3", "--noise.steps", "5",
        "--noise.eps", "None", "--out", "made/noise.safetensors",
    )  # fmt: skip
    assert code == 0, errors
    noise = load_file(tmp_path / "made" / "noise.safetensors")["noise"]
    record = json.loads((tmp_path / "made" / "noise.json").read_text())
    assert noise.shape == (1, 16, 128)
    assert record["config"]["steps"] == record["result"]["steps"] == 5
    assert (record["model"], record["pool"], record["heldout"], record["seed"]) == ("shapes_vit", 12, 4, 3)
    assert record["result"]["norm"] == pytest.approx(noise.norm().item())
    assert "converged True" in text


def test_pretrain_writes_weights_that_load(call, tmp_path):
    code, text, errors = call(
        "pretrain", "--target", "w.safetensors", "--set", "size=24", "steps=2", "batch=4", "report_images=20"
    )
    assert code == 0, errors
    assert "top-1 of 20 images a split" in text
    assert nslib.load_model("shapes_vit", tmp_path / "w.safetensors", img_size=24).image_shape == (3, 24, 24)


def test_foreign_weights_by_folder(call, tmp_path):
    state = nslib.load_model("vit_tiny_patch16_224", "random").vit.state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "vit_tiny_patch16_224.safetensors")
    code, text, _ = call("nulldim", "--model", "vit_tiny_patch16_224", "--weights", str(tmp_path))
    assert code == 0
    assert "null dimension 576" in text


# Evaluation


def test_evaluate_writes_a_table_and_its_record(call, tmp_path):
    tiny = ("--set", "suite.images=6", "suite.batch=4", "suite.fgsm_eps=2/255")
    out = tmp_path / "row.csv"
    code, printed, _ = call("evaluate", "--columns", "clean,fgsm", *tiny, "--out", str(out))
    assert code == 0
    assert "top-1" in printed
    table = pd.read_csv(out).set_index("column")
    assert table.n.tolist() == [6, 6]
    record = json.loads((tmp_path / "row.evaluation.json").read_text())  # row.json would be that of weights
    assert record["config"]["suite"]["fgsm_eps"] == pytest.approx(2 / 255)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["row.csv", "row.evaluation.json"]


def test_evaluate_of_a_folder_without_what_is_asked_for(call, tmp_path):
    (tmp_path / "empty").mkdir()
    tag = ("--model", "vit_tiny_patch16_224", "--weights", "random", "--imagenet", str(tmp_path / "empty"))
    code, _, errors = call("evaluate", *tag, "--columns", "clean,a")
    assert code == 2
    assert "no column can be measured: " in errors
    assert "expected <root>/<split>/<wnid>/*.JPEG" in errors


def test_evaluate_against_a_model_of_other_classes(call, tmp_path):
    other = load_model(weights="random", num_classes=5)
    save_file(other.vit.state_dict(), tmp_path / "other.safetensors")
    code, _, errors = call("evaluate", "--against", str(tmp_path / "other.safetensors"), "--columns", "clean")
    assert code == 2
    assert "answers with 5 classes and shapes_vit with 10: only models of the same classes can be compared" in errors


def test_evaluate_against_a_model_of_as_many_other_classes(call, tmp_path):
    for name, first in (("own", "a"), ("other", "b")):
        model = load_model(weights="random")
        model.classes = (first, *map(str, range(9)))
        save_weights(model, tmp_path / f"{name}.safetensors")
    pair = ("--weights", str(tmp_path / "own.safetensors"), "--against", str(tmp_path / "other.safetensors"))
    code, _, errors = call("evaluate", *pair, "--columns", "clean", "--set", "suite.images=4")
    assert code == 2
    assert "was finetuned for class b where shapes_vit was for a: only models of the same classes" in errors


def test_evaluate_against_another_model(call, tmp_path):
    out = tmp_path / "row.csv"
    other = str(tmp_path / "other.safetensors")
    save_file(load_model(weights="random").vit.state_dict(), other)
    tiny = ("--columns", "clean", "--set", "suite.images=40")
    code, _, _ = call("evaluate", "--against", other, *tiny, "--out", str(out))
    assert code == 0
    row = pd.read_csv(out).iloc[0]
    assert row.difference > 50  # percentage points: the other one knows nothing
    assert row.difference_low > 0
    assert row.p < 1e-3


def test_evaluate_opens_the_other_model_before_it_measures(call, monkeypatch):
    monkeypatch.setattr("nslib.evaluate.suite.evaluate_model", lambda *a, **k: pytest.fail("measured"))
    code, _, errors = call("evaluate", "--against", "none.safetensors", "--columns", "clean")
    assert code == 2
    assert "none.safetensors" in errors


def test_evaluate_reads_a_training_checkpoint_behind_its_own_normalisation(call, tmp_path):
    """The same function as the shipped model's: images twice as far from 0.5 times half the patch weight."""
    state = load_model().vit.state_dict()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"] / 2
    layers = {"0.mean": torch.full((3,), 0.5), "0.std": torch.full((3,), 0.25)}
    checkpoint = tmp_path / "model_best.pth.tar"
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in (layers | {f"1.{n}": w for n, w in state.items()}).items()}},
        checkpoint,
    )
    tiny = ("--columns", "clean", "--set", "suite.images=40")
    tables = []
    for weights in ("shipped", str(checkpoint)):
        code, printed, errors = call("evaluate", "--weights", weights, *tiny)
        assert code == 0, errors
        tables.append(printed)
    assert tables[0] == tables[1]


def test_evaluate_dry_run_only_counts(call):
    code, printed, _ = call("evaluate", "--dry-run", "--columns", "clean,c", "--set", "suite.c_images=100")
    assert code == 0
    assert re.search(r"c\s+100\s+7500", printed)
    assert re.search(r"minutes on one process as fast as this one$", printed.strip())
    code, printed, _ = call("evaluate", "--dry-run", "--columns", "clean", "--against", "shipped")
    assert code == 0
    assert printed.strip().endswith("minutes on one process as fast as this one, for both models")
    code, _, errors = call("evaluate", "--dry-run", "--columns", "clean", "--against", "none.safetensors")
    assert code == 2
    assert "none.safetensors" in errors


# Finetuning


def test_finetune_writes_weights_that_load(call, tmp_path):
    target = tmp_path / "tuned.safetensors"
    tiny = ("--set", "rounds=1", "steps=2", "batch=4", "pool=8", "heldout=4", "noise.batch=4", "noise.eps=0.5")
    code, printed, _ = call("finetune", "--target", str(target), *tiny)
    assert code == 0
    assert "1 rounds of 2 updates" in printed
    assert load_model("shapes_vit", target).num_classes == 10
    assert json.loads(target.with_suffix(".json").read_text())["config"]["finetune"]["noise"]["eps"] == 0.5
    assert len(target.with_suffix(".jsonl").read_text().splitlines()) == 1


def test_settings_name_the_model_and_the_objective_too(call, monkeypatch):
    asked = {}
    monkeypatch.setattr(
        "nslib.pretrain.pretrain",
        lambda cfg, path, device: asked.update(model=cfg.model) or {"minutes": 0, "n": 0, "top1": {}},
    )
    assert call("pretrain", "--set", "model=vit_tiny_patch16_224")[0] == 0
    assert asked["model"] == "vit_tiny_patch16_224"

    def stop(vit, source, cfg, target, share, on_step):
        raise ValueError(f"{cfg.objective} {target.name}")

    monkeypatch.setattr("nslib.finetune.rounds.finetune_model", stop)
    assert "plain shapes_vit_plain.safetensors" in call("finetune", "--set", "objective=plain")[2]


def test_finetune_may_be_told_what_another_objective_of_the_profile_refuses(call, monkeypatch):
    asked = []

    def stop(vit, source, cfg, target, share, on_step):
        raise ValueError(asked.append((cfg.objective, cfg.warm_start)))

    monkeypatch.setattr("nslib.finetune.rounds.finetune_model", stop)
    for profile in ("", "full"):
        call("finetune", "--set", "warm_start=1.5", *(("--profile", profile) if profile else ()))
    assert asked == [("nullspace", 1.5)] * 2
    code, _, told = call("finetune", "--objective", "permuted", "--set", "warm_start=1.5")
    assert code == 2
    assert "warm_start must be 0 with permuted, got 1.5" in told


@pytest.mark.parametrize(
    ("objective", "asked", "expected"),
    [
        ("mixup", ("mixup=0", "cutmix=0.5"), ["mixup = 0.0 changes nothing of objective mixup, which trains with 0.8"]),
        ("plain", ("noise.eps=0.1", "data.seed=1"), ["noise.eps = 0.1 changes nothing of objective plain"]),
        ("nullspace", ("noise.eps=0.1", "mixup=0"), []),
    ],
)
def test_finetune_says_what_it_was_set_in_vain(call, monkeypatch, objective, asked, expected):
    def stop(vit, source, cfg, target, share, on_step):
        raise ValueError("that is all")

    monkeypatch.setattr("nslib.finetune.rounds.finetune_model", stop)
    told = call("finetune", "--objective", objective, "--set", *asked)[2].splitlines()
    assert [line for line in told if "objective" in line] == [f"nslib: {line}" for line in expected]


@pytest.mark.parametrize(("ema", "told"), [(0.9, ""), (0.99, "ema = 0.99 leaves 67 % of the starting weights")])
def test_finetune_says_when_an_average_hardly_moves(call, tmp_path, ema, told):
    tiny = (f"ema={ema}", "rounds=1", "steps=40", "batch=2", "pool=2", "heldout=2")
    code, printed, errors = call(
        "finetune", "--objective", "plain", "--target", str(tmp_path / "w.safetensors"), "--set", *tiny
    )
    assert code == 0
    assert told in errors
    assert ("starting weights" in errors) == bool(told)
    assert "for timm: images (3, 48, 48), mean [0.5, 0.5, 0.5], std [0.5, 0.5, 0.5]" in printed
    assert "split train: 4 images for the noise, the others for the updates" in printed


def test_finetune_says_which_rounds_missed_eps(call, tmp_path):
    tiny = ("--set", "rounds=1", "steps=1", "batch=4", "pool=8", "heldout=4", "noise.batch=4", "noise.steps=1")
    with pytest.warns(UserWarning, match="did not reach eps"):
        code, printed, _ = call("finetune", "--target", str(tmp_path / "tuned.safetensors"), *tiny)
    assert code == 0
    assert "round 0: noise did not reach eps = 0.03 in 1 steps" in printed


def test_finetune_starts_from_a_training_checkpoint(call, tmp_path):
    checkpoint = tmp_path / "dat.pth.tar"
    state = {f"module.{k}": v for k, v in load_model().vit.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, checkpoint)
    tiny = ("--objective", "plain", "--set", "rounds=1", "steps=1", "batch=4", "pool=8", "heldout=4")
    code, _, _ = call("finetune", "--weights", str(checkpoint), "--target", str(tmp_path / "a.safetensors"), *tiny)
    assert code == 0
    assert call("finetune", "--target", str(tmp_path / "b.safetensors"), *tiny)[0] == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_finetune_gives_a_model_a_head_for_the_data(call, tmp_path):
    save_file(load_model(weights="random", num_classes=12).vit.state_dict(), tmp_path / "twelve.safetensors")
    tiny = ("--objective", "plain", "--set", "rounds=1", "steps=1", "batch=4", "pool=8", "heldout=4")
    arguments = ("finetune", "--weights", "twelve.safetensors", "--target", "tuned.safetensors")
    code, _, errors = call(*arguments, *tiny)
    assert code == 2
    assert "num_classes=10" in errors
    assert call(*arguments, "--num-classes", "10", *tiny)[0] == 0
    assert load_file(tmp_path / "tuned.safetensors")["head.weight"].shape == (10, 128)
    clean = ("--columns", "clean", "--set", "suite.images=4")
    assert call("evaluate", "--weights", "tuned.safetensors", "--out", "tuned.csv", *clean)[0] == 0
    assert "rounds" in json.loads((tmp_path / "tuned.json").read_text())  # still the record of the finetuning


def test_finetune_gives_a_head_to_weights_that_have_none(call, tmp_path):
    """As of a model that was pretrained without labels, under a name that has a head."""
    bare = {name: w for name, w in load_model().vit.state_dict().items() if not name.startswith("head.")}
    save_file(bare, tmp_path / "bare.safetensors")
    tiny = ("--objective", "plain", "--set", "rounds=1", "steps=1", "batch=4", "pool=8", "heldout=4")
    arguments = ("finetune", "--weights", "bare.safetensors", "--target", "tuned.safetensors")
    code, _, errors = call(*arguments, *tiny)
    assert code == 2
    assert "shapes_vit has no classifier: give it one by" in errors
    assert "--num-classes N" in errors
    assert call(*arguments, "--num-classes", "10", *tiny)[0] == 0
    assert load_file(tmp_path / "tuned.safetensors")["head.weight"].shape == (10, 128)


def test_images_of_another_size(call, tmp_path):
    """The file brings its size; a comparison with weights for another names the option."""
    tiny = ("--objective", "plain", "--set", "rounds=1", "steps=1", "batch=4", "pool=8", "heldout=4")
    code, printed, _ = call("finetune", "--img-size", "72", "--target", "tuned.safetensors", *tiny)
    assert code == 0
    assert "for timm: images (3, 72, 72)" in printed
    assert load_file(tmp_path / "tuned.safetensors")["pos_embed"].shape == (1, 37, 128)
    clean = ("evaluate", "--weights", "tuned.safetensors", "--columns", "clean", "--set", "suite.images=16")
    code, own, _ = call(*clean)
    assert code == 0
    code, _, errors = call(*clean, "--against", "shipped")
    assert code == 2
    assert "takes images (3, 48, 48) and shapes_vit (3, 72, 72): name the size for both (--img-size)" in errors
    code, both, _ = call(*clean, "--against", "shipped", "--img-size", "72")
    assert code == 0
    assert both.splitlines()[1].split()[:3] == own.splitlines()[1].split()[:3]
    code, _, errors = call(*clean, "--img-size", "-1")
    assert code == 2
    assert "img_size must be >= 0, got -1" in errors


def test_files_to_write_may_lie_in_the_home_folder(call, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert call("evaluate", "--columns", "clean", "--out=~/table.csv", "--set", "suite.images=4")[0] == 0
    quick = ("--pool", "2", "--heldout", "1", "--noise.steps", "1", "--noise.batch", "2")
    assert call("noise", "--weights", "random", *quick, "--out=~/noise.safetensors")[0] == 0
    assert {"table.csv", "table.evaluation.json", "noise.safetensors", "noise.json"} == {
        p.name for p in (tmp_path / "home").iterdir()
    }
    assert not (tmp_path / "~").exists()


# Pictures


@pytest.fixture
def pictures(tmp_path):
    """Two drawn pictures of the shipped model's size."""
    images, _ = render("val", [0, 1])
    return [str(write_picture(tmp_path / f"{i}.png", image)) for i, image in enumerate(images)]


@pytest.mark.parametrize(("command", "other"), [("watermark", "--mark"), ("disguise", "--target")])
def test_pictures_in_pictures(call, pictures, tmp_path, command, other):
    out = tmp_path / "out.png"
    code, printed, _ = call(command, "--source", pictures[0], other, pictures[1], "--out", str(out))
    assert code == 0
    before, made, target = (read_picture(p) for p in (pictures[0], out, pictures[1]))
    assert (made - target).norm() < (before - target).norm()
    told = dict(entry.rsplit(" ", 1) for entry in printed.strip().split(": ", 1)[1].split(", "))
    assert told["match"] == "True"
    assert told["class_before"] == told["class_after"]
    assert float(told["confidence_after"]) == pytest.approx(float(told["confidence_before"]), abs=0.01)
    assert float(told["pixels"]) == pytest.approx((made - before).abs().max().item(), abs=1e-3)
    assert float(told["psnr"]) > float(told["psnr_before"])


def test_pictures_that_do_not_fit_are_refused(call, pictures, tmp_path):
    given = ("--source", pictures[0], "--out", str(tmp_path / "out.png"))
    small = str(write_picture(tmp_path / "small.png", torch.zeros(3, 24, 24)))
    code, _, errors = call("disguise", *given, "--target", small)
    assert code == 2
    assert "source and target must have the same size, got (1, 3, 48, 48) and (1, 3, 24, 24): resize" in errors
    blind = ("--model", "vit_base_patch8_224", "--weights", "random")
    code, _, errors = call("watermark", *given, "--mark", pictures[1], *blind)
    assert code == 2
    assert "has the trivial nullspace only: take a model" in errors
    assert not (tmp_path / "out.png").exists()
    code, _, errors = call("disguise", "--source", pictures[0], "--target", pictures[1], "--out", pictures[1])
    assert code == 2
    assert "1.png is one of the two pictures, and would be lost: name another file to write" in errors


def test_psnr_of_a_watermark_is_that_to_the_blend(call, pictures, tmp_path):
    out = str(tmp_path / "out.png")
    given = ("--source", pictures[0], "--mark", pictures[1], "--out", out)
    code, printed, _ = call("watermark", *given)
    assert code == 0
    source, mark, made = (read_picture(p) for p in (*pictures, out))
    error = (made - source.lerp(mark, 0.3)).square().mean()
    assert f"psnr {-10 * error.log10():.4g}" in printed
    for strength in ("0", "2"):
        code, _, errors = call("watermark", *given, "--strength", strength)
        assert code == 2
        assert f"strength must lie in (0, 1], where 0 would save the source as it is; got {strength}" in errors


@pytest.fixture
def key(call, tmp_path):
    path = str(tmp_path / "key.safetensors")
    code, printed, _ = call("fingerprint", "--key", path)
    assert code == 0
    assert "key of shapes_vit" in printed
    return path


def test_fingerprint_knows_the_model_of_a_key(call, tmp_path, key):
    """Of suspects by tag, file, tag and file, and tag and choice, one with patches of another size."""
    other, own = str(tmp_path / "other.safetensors"), str(weights_path("shapes_vit", "shipped"))
    save_file(load_model(weights="random").vit.state_dict(), other)
    suspects = {
        "shapes_vit": "True",
        own: "True",
        f"shapes_vit={own}": "True",
        other: "False",
        "shapes_vit=random": "False",
        "vit_tiny_patch16_224=random": "False",
    }
    code, printed, _ = call("fingerprint", "--key", key, "--models", *suspects)
    assert code == 0
    rows = [line.split() for line in printed.splitlines()[1:]]
    assert {row[0]: row[4] for row in rows} == suspects
    one_by_one = [part for told in suspects for part in ("--models", told)]
    assert call("fingerprint", "--key", key, *one_by_one)[1] == printed
    assert (rows[-1][1], " ".join(rows[-1][5:])) == ("NaN", "patches of 768 pixels, key of 432")


def test_weights_are_those_of_suspects_named_by_tag(call, key):
    code, printed, _ = call("fingerprint", "--key", key, "--models", "shapes_vit", "--weights", "random")
    assert (code, printed.split()[-1]) == (0, "False")


def test_fingerprint_makes_no_key_by_mistake(call, tmp_path, key, monkeypatch):
    missing = str(tmp_path / "kye.safetensors")
    code, _, errors = call("fingerprint", "--key", missing, "--models", "shapes_vit")
    assert code == 2
    assert "no key at" in errors
    assert "make one with `nslib fingerprint --key" in errors
    assert not Path(missing).exists()
    code, _, errors = call("fingerprint", "--key", key, "--weights", "random")
    assert code == 2
    assert "is there already: name models to compare with it by --models, or another --key" in errors
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(key, tmp_path / "own.safetensors")
    assert "is there already" in call("fingerprint", "--key=~/own.safetensors", "--weights", "random")[2]
    code, _, errors = call("fingerprint", "--key", key, "--models", "lost.safetensors")
    assert code == 2
    assert "no weights at lost.safetensors" in errors
