"""The runner on small notebooks of its own: what runs, what is skipped, and what a failure leaves."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import nbformat
import pytest
import torch
from conftest import ROOT
from nbformat.v4 import new_code_cell, new_notebook

import nslib.notebooks as files
import nslib.reproduce as runner
from nslib.machine.makers import only_maker
from nslib.notebooks import find_notebooks
from nslib.profiles import resolve
from nslib.report.record import portable
from nslib.reproduce import DONE, FAILED, LEFT, SKIPPED, reproduce
from nslib.runtime import to_json

PARAMETERS = 'profile = "smoke"\nrun_name = ""\noverrides = {}'
RECORD = """
import json, os
from pathlib import Path

figures = Path(os.environ["NSLIB_FIGURES"])
with open(figures.parent / "log", "a") as log:
    print("NAME", profile, run_name, overrides, file=log)
folder = figures / run_name / "records"
folder.mkdir(parents=True, exist_ok=True)
verdicts = ["holds", "holds", "does not hold", "not testable"]
(folder / "NAME.json").write_text(json.dumps({"verdicts": [{"verdict": v} for v in verdicts]}))
"""


class Place:
    """Notebooks, runs and figures in a temporary folder."""

    def __init__(self, folder):
        self.notebooks, self.runs, self.figures = folder / "paper_nb", folder / "runs", folder / "figures"
        self.folder = folder
        self.notebooks.mkdir()

    def add(self, name: str, *code: str, parameters: str = PARAMETERS):
        cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]})]
        cells += [new_code_cell(c.replace("NAME", name)) for c in code or [RECORD]]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(new_notebook(cells=cells, metadata=kernel), self.notebooks / f"{name}.ipynb")

    def log(self) -> list[str]:
        """One line a finished run: name and parameters."""
        path = self.folder / "log"
        return path.read_text().splitlines() if path.is_file() else []

    def files(self, run_name: str) -> set[str]:
        return {p.name for p in (self.runs / run_name).iterdir()}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    place = Place(tmp_path)
    monkeypatch.setattr(files, "notebook_folder", lambda: place.notebooks)
    monkeypatch.setattr(runner, "runs_path", lambda run_name: place.runs / run_name)
    monkeypatch.setenv("NSLIB_FIGURES", str(place.figures))
    return place


def statuses(outcomes):
    return [o.status for o in outcomes]


def test_second_run_skips_what_is_done(place, capsys):
    place.add("01_first")
    place.add("02b_second")
    outcomes = reproduce([], "smoke")
    assert [(o.notebook, o.status, o.held, o.tested) for o in outcomes] == [
        ("01_first", DONE, 2, 3),
        ("02b_second", DONE, 2, 3),
    ]
    assert sorted(place.log()) == ["01_first smoke smoke {}", "02b_second smoke smoke {}"]
    expected = {f"{n}{suffix}" for n in ("01_first", "02b_second") for suffix in (".ipynb", ".done.json")}
    assert place.files("smoke") == expected  # no partial ones
    executed = nbformat.read(place.runs / "smoke" / "01_first.ipynb", as_version=4)
    assert any("injected-parameters" in c.metadata.get("tags", []) for c in executed.cells)
    assert all(c.outputs == [] for c in nbformat.read(place.notebooks / "01_first.ipynb", as_version=4).cells)
    table = capsys.readouterr().out.splitlines()[-3:]
    assert table[0].split() == ["notebook", "status", "seconds", "claims", "held", "/", "tested"]
    assert table[1].split()[:2] == ["01_first", "done"]
    assert table[1].endswith("2 / 3")

    again = reproduce([], "smoke")
    assert statuses(again) == [SKIPPED, SKIPPED]
    assert [(o.held, o.tested) for o in again] == [(2, 3), (2, 3)]
    assert len(place.log()) == 2

    assert statuses(reproduce(["01"], "smoke", force=True)) == [DONE]
    assert len(place.log()) == 3


def test_results_of_other_settings_are_not_written_over_unseen(place, capsys):
    """The record of this notebook's other run is there, with the settings of its profile."""
    place.add("01_first")
    record = place.figures / "smoke" / "records" / "01_first.json"
    record.parent.mkdir(parents=True)
    for overrides, told in (
        ({}, ""),
        ({"images": 9}, "figures/smoke has results of 01_first with other settings (images 256, now 9): they are"),
    ):
        record.write_text(to_json({"config": portable(resolve("smoke")), "verdicts": []}))
        reproduce([], "smoke", overrides=overrides)
        first = capsys.readouterr().out.splitlines()[0]
        assert first.startswith(told or "[1/1] 01_first")
    reproduce([], "smoke", run_name="other", overrides={"images": 9})
    assert "written over" not in capsys.readouterr().out


def test_a_forced_run_that_was_stopped_is_gone_on_with(place):
    place.add("01_first")
    place.add("02_second")
    reproduce([], "smoke")
    assert statuses(reproduce([], "smoke", force=True, minutes=1e-9)) == [LEFT, LEFT]
    assert statuses(reproduce(["01"], "smoke")) == [DONE]
    assert statuses(reproduce([], "smoke")) == [SKIPPED, DONE]


def test_rounds_that_missed_eps_are_told_at_the_end(place, capsys):
    place.add("01_fine")
    facts = '{"facts": {"missed_eps": {"nullspace": 2, "random": 0}}, "verdicts"'
    place.add("02_missed", RECORD.replace('{"verdicts"', facts))
    assert [o.missed for o in reproduce([], "smoke")] == [0, 2]
    fine, missed = capsys.readouterr().out.splitlines()[-2:]
    assert fine.endswith("2 / 3")
    assert missed.endswith("2 / 3  rounds that missed eps: 2")
    assert [o.missed for o in reproduce([], "smoke")] == [0, 2]  # also of what is unchanged


def test_what_has_changed_runs_again(place):
    place.add("01_first")
    assert statuses(reproduce([], "smoke")) == [DONE]
    assert statuses(reproduce([], "smoke", overrides={"images": 5})) == [DONE]  # parameters
    assert statuses(reproduce([], "smoke", overrides={"images": 5})) == [SKIPPED]
    place.add("01_first", RECORD, "1 + 1")  # source
    assert statuses(reproduce([], "smoke", overrides={"images": 5})) == [DONE]
    (place.figures / "smoke" / "records" / "01_first.json").unlink()  # results
    assert statuses(reproduce([], "smoke", overrides={"images": 5})) == [DONE]
    assert place.log()[1] == "01_first smoke smoke {'images': 5}"
    assert len(place.log()) == 4


def test_figures_that_are_gone_or_of_another_run_are_made_again(place):
    record = place.figures / "smoke" / "records" / "01_first.json"
    place.add("01_first", RECORD.replace('{"verdicts"', '{"files": ["01_first_table.csv"], "verdicts"'))
    table = place.figures / "smoke" / "01_first_table.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.touch()
    assert statuses(reproduce([], "smoke")) == [DONE]
    assert statuses(reproduce([], "smoke")) == [SKIPPED]
    table.unlink()
    assert statuses(reproduce([], "smoke")) == [DONE]  # whose cell does not make it
    table.touch()
    assert statuses(reproduce([], "smoke")) == [SKIPPED]
    record.write_text(record.read_text().replace("holds", "does not hold", 1))
    assert statuses(reproduce([], "smoke")) == [DONE]


def test_a_run_of_another_name_has_folders_of_its_own(place):
    place.add("01_first")
    reproduce([], "smoke", run_name="mine")
    assert place.log() == ["01_first smoke mine {}"]
    assert (place.runs / "mine" / "01_first.ipynb").is_file()
    assert statuses(reproduce([], "smoke", run_name="mine")) == [SKIPPED]


def test_a_notebook_that_reads_records_runs_last(place):
    place.add("01_reads", RECORD)
    path = place.notebooks / "01_reads.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].metadata["tags"] = ["reads-records"]
    nbformat.write(notebook, path)
    place.add("02_first")
    assert [o.notebook for o in reproduce([], "smoke")] == ["02_first", "01_reads"]


def test_a_run_stops_in_time_and_goes_on_from_there(place, capsys):
    place.add("01_first")
    place.add("02_long", "import time\nfrom pathlib import Path\nflag = Path('../flag')\nif not flag.exists():\n"
              "    flag.touch()\n    time.sleep(600)", RECORD)  # fmt: skip
    place.add("03_third")
    outcomes = reproduce([], "smoke", minutes=0.25, jobs=1)
    assert statuses(outcomes) == [DONE, LEFT, LEFT]
    assert outcomes[1].seconds < 30
    assert place.files("smoke") == {"01_first.ipynb", "01_first.done.json"}
    assert "[2/3] 02_long ...\n02_long left" in capsys.readouterr().out
    assert statuses(reproduce([], "smoke", minutes=5)) == [SKIPPED, DONE, DONE]
    with pytest.raises(ValueError, match="minutes must be > 0, got 0"):
        reproduce([], "smoke", minutes=0)


def test_a_failure_does_not_stop_the_others(place, capsys):
    place.add("01_breaks", "raise KeyError('no such thing')")
    place.add("02_dies", "import os\nos._exit(3)")
    place.add("03_works")
    broken, dead, fine = reproduce([], "smoke")
    assert (broken.status, dead.status, fine.status) == (FAILED, FAILED, DONE)
    assert "KeyError: 'no such thing'" in broken.error
    assert "01_breaks.partial.ipynb" in broken.error
    assert "DeadKernelError" in dead.error
    files = place.files("smoke")
    assert {"03_works.ipynb", "01_breaks.partial.ipynb"} <= files
    assert not {"01_breaks.ipynb", "01_breaks.done.json", "02_dies.ipynb", "02_dies.done.json"} & files
    table = capsys.readouterr().out.splitlines()[-3:]
    assert "FAILED" in table[0]
    assert "KeyError: 'no such thing'" in table[0]

    place.add("01_breaks")  # mended
    place.add("02_dies")
    assert statuses(reproduce([], "smoke")) == [DONE, DONE, SKIPPED]
    assert not {n for n in place.files("smoke") if "partial" in n}


def test_a_disk_that_fills_after_the_last_cell_does_not_stop_the_others(place, monkeypatch):
    place.add("01_first")
    place.add("02_second")
    write = runner.write_notebook

    def full(notebook, path):
        if path.stem == "01_first":
            raise OSError(28, "No space left on device")
        write(notebook, path)

    monkeypatch.setattr(runner, "write_notebook", full)
    first, second = reproduce([], "smoke", jobs=1)
    assert (first.status, second.status) == (FAILED, DONE)
    assert "No space left" in first.error


def test_a_kernel_that_dies_before_it_answers_is_started_again(place, monkeypatch):
    place.add("01_first")
    execute, begun = runner.papermill.execute_notebook, []

    def racing(*args, **settings):
        begun.append(args[0])
        if len(begun) in deaths:
            raise RuntimeError("Kernel died before replying to kernel_info")
        return execute(*args, **settings)

    monkeypatch.setattr(runner.papermill, "execute_notebook", racing)
    deaths = {1, 2}  # once more, not for ever
    (given_up,) = reproduce([], "smoke", jobs=1)
    assert (given_up.status, len(begun)) == (FAILED, 2)
    begun.clear()
    deaths = {1}
    (done,) = reproduce([], "smoke", jobs=1)
    assert (done.status, len(begun)) == (DONE, 2)


def test_a_damaged_record_is_made_anew(place):
    place.add("01_first", RECORD)
    assert statuses(reproduce([], "smoke")) == [DONE]
    (record,) = (runner.figures_path("smoke") / "records").glob("*.json")
    record.write_text("{")
    assert statuses(reproduce([], "smoke")) == [DONE]
    assert json.loads(record.read_text())["verdicts"] is not None


def test_notebook_that_fails_after_a_success_is_not_skipped_later(place):
    place.add("01_first")
    reproduce([], "smoke")
    place.add("01_first", "1 / 0")
    assert statuses(reproduce([], "smoke")) == [FAILED]
    place.add("01_first")  # as it was: but the last run of it failed
    assert statuses(reproduce([], "smoke")) == [DONE]


# Several at a time

TOGETHER = """
import os, time
from pathlib import Path

Path("../NAME.here").touch()
began = time.monotonic()
while not Path("../OTHER.here").exists():
    assert time.monotonic() - began < 60, "the other one never came"
    time.sleep(0.05)
Path("../NAME.threads").write_text(os.environ["OMP_NUM_THREADS"])
"""


def test_two_at_a_time_with_half_of_the_threads_each_and_the_reader_after_both(place, capsys, monkeypatch):
    """Each of the first two ends only where the other one runs too."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    for name, other in (("02_one", "03_two"), ("03_two", "02_one")):
        place.add(name, TOGETHER.replace("OTHER", other), RECORD)
    place.add("01_reads", RECORD)
    path = place.notebooks / "01_reads.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].metadata["tags"] = ["reads-records"]
    nbformat.write(notebook, path)
    assert [(o.notebook, o.status) for o in reproduce([], "smoke", jobs=2)] == [
        ("02_one", DONE), ("03_two", DONE), ("01_reads", DONE)
    ]  # fmt: skip
    assert place.log()[-1].startswith("01_reads")
    assert {(place.folder / f"{name}.threads").read_text() for name in ("02_one", "03_two")} == {"3"}
    assert os.environ["OMP_NUM_THREADS"] == "7"
    told = capsys.readouterr().out.splitlines()
    assert told[:2] == ["[1/3] 02_one ...", "[2/3] 03_two ..."]
    assert {line.split(",")[0] for line in told[2:4]} == {"02_one done", "03_two done"}
    assert statuses(reproduce([], "smoke", jobs=3)) == [SKIPPED] * 3


def test_of_several_the_longest_begins(place, capsys):
    """As far as any run tells; one at a time they run in their order, and the table is in their order anyway."""
    for name in ("01_short", "02_unknown", "03_long", "04_damaged"):
        place.add(name)
    for run_name, name, minutes in (("laptop", "01_short", 2.5), ("laptop", "03_long", 2.0), ("gpu", "03_long", 7)):
        path = place.figures / run_name / "records" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"minutes": minutes}))
    (place.figures / "gpu" / "records" / "04_damaged.json").write_text("{")
    outcomes = reproduce([], "smoke", run_name="mine", jobs=2)
    assert [o.notebook for o in outcomes] == ["01_short", "02_unknown", "03_long", "04_damaged"]
    begun = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert begun == ["03_long", "01_short", "02_unknown", "04_damaged"]
    reproduce([], "smoke", run_name="other", jobs=1)
    begun = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert begun == ["01_short", "02_unknown", "03_long", "04_damaged"]


def test_a_killed_worker_is_told_and_the_readers_still_run(place):
    """As where memory is short: the process above the kernel is gone."""
    place.add("01_kills", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nimport time\ntime.sleep(600)")
    place.add("02_beside")
    outcomes = reproduce([], "smoke", jobs=2)
    assert outcomes[0].status == FAILED
    assert "try --jobs 1" in outcomes[0].error
    assert statuses(reproduce(["02"], "smoke"))[0] in (DONE, SKIPPED)


@pytest.mark.parametrize("waiting", ["pieces[0].result()", ""], ids=["for a piece", "for all of them"])
@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_workers_end_with_the_command(tmp_path, how, waiting):
    """Ctrl-C reaches the workers too; a signal to the command alone does not, and more is waiting for its turn."""
    code = f"""
        import signal
        from nslib.machine.workers import workers
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in its background ignores it
        if __name__ == "__main__":
            with workers(2) as submit:
                pieces = [submit(exec, "import os, time; from pathlib import Path; "
                    "Path({str(tmp_path)!r}, str(os.getpid())).touch(); time.sleep(600)") for _ in range(6)]
                {waiting}
    """
    script = tmp_path / "command.py"
    script.write_text(textwrap.dedent(code))
    command = subprocess.Popen([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": str(ROOT)},
                               stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 60
    while len(begun := [int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    command.send_signal(signal.SIGKILL if how == "kill" else signal.SIGINT)
    assert command.wait(timeout=30) != 0
    if how == "interrupt":
        assert not any(map(running, begun))
    while any(map(running, begun)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len([p for p in tmp_path.iterdir() if p.name.isdigit()]) == 2


def running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")  # one that has ended and waits to be noticed does not run
    return not (status.is_file() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def test_number_of_jobs():
    with pytest.raises(ValueError, match="jobs must be >= 0, got -1"):
        reproduce([], "smoke", jobs=-1)


# What a result depends on


@pytest.fixture
def key(place):
    """The key of a notebook at the settings of a profile."""
    place.add("01_first")

    def compute(profile="smoke", overrides=None):
        settings = resolve(profile, "", overrides)
        parameters = {"profile": profile, "run_name": settings.run_name, "overrides": overrides or {}}
        notebook = place.notebooks / "01_first.ipynb"
        return runner._key(notebook, parameters, runner._inputs_digest(settings))

    return compute


def test_images_behind_a_link_are_part_of_the_key(tmp_path):
    (tmp_path / "far" / "n01").mkdir(parents=True)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "val").symlink_to(tmp_path / "far")
    settings = resolve(
        "imagenet", overrides={"data.root": str(tmp_path / "root"), "weights": "random", "models": "vit"}
    )
    before = runner._inputs_digest(settings)
    (tmp_path / "far" / "n01" / "one.JPEG").write_text("an image")
    assert runner._inputs_digest(settings) != before


def test_a_link_to_nowhere_beside_the_images_stops_nothing(tmp_path):
    settings = resolve("imagenet", overrides={"data.root": str(tmp_path), "weights": "random", "models": "vit"})
    before = runner._inputs_digest(settings)
    (tmp_path / "gone.JPEG").symlink_to(tmp_path / "nowhere")
    assert runner._inputs_digest(settings) != before


def test_of_two_calls_with_one_run_name_the_second_waits_and_finds_the_notebook_done(place):
    """One of them is another process, which is at the notebook when this one asks for it."""
    place.add("01_slow", "import time; time.sleep(3)", RECORD)
    code = f"""
        from pathlib import Path
        import nslib.notebooks as files, nslib.reproduce as runner
        files.notebook_folder = lambda: Path({str(place.notebooks)!r})
        runner.runs_path = lambda run_name: Path({str(place.runs)!r}) / run_name
        runner.reproduce([], "smoke")
    """
    other = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, stdout=subprocess.PIPE)
    partial = place.runs / "smoke" / "01_slow.partial.ipynb"
    while not partial.is_file():
        assert other.poll() is None
        time.sleep(0.05)
    assert statuses(reproduce([], "smoke")) == [SKIPPED]
    told, _ = other.communicate(timeout=60)
    assert b"01_slow done" in told
    assert len(place.log()) == 1


def test_a_notebook_that_another_call_is_at_is_left_when_the_time_is_up(place):
    place.add("01_first")
    with only_maker(place.runs / "smoke" / "01_first.ipynb"):
        (left,) = reproduce([], "smoke", minutes=0.02)
    assert (left.status, place.log()) == (LEFT, [])


def test_a_store_that_may_only_be_read_stops_no_notebook(place, folders, monkeypatch):
    """Nothing of it needs to be written where all that it asks for is there; a file stands where locks would lie."""
    place.add("01_first")
    (folders / "store").mkdir()
    (folders / "store" / "makers").write_text("")
    assert statuses(reproduce([], "smoke")) == [DONE]


def test_weights_in_the_home_folder_are_part_of_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "one.safetensors").write_bytes(b"weights")
    settings = resolve("laptop", overrides={"weights": "~/one.safetensors"})
    before = runner._inputs_digest(settings)
    (tmp_path / "one.safetensors").write_bytes(b"others")
    assert runner._inputs_digest(settings) != before


def test_key_is_that_of_source_and_not_of_outputs(place, key):
    before = key()
    assert key() == before
    path = place.notebooks / "01_first.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text="seen")]
    nbformat.write(notebook, path)
    assert key() == before
    notebook.cells[1].source += "\n# a remark"
    nbformat.write(notebook, path)
    assert key() != before


def test_key_follows_weights_images_and_versions(place, key, monkeypatch):
    weights = place.folder / "w.safetensors"
    weights.write_bytes(b"one")
    images = place.folder / "images" / "val" / "n01440764"
    images.mkdir(parents=True)
    (images / "a.JPEG").write_bytes(b"123")

    def now():
        return key("imagenet", {"weights": str(weights), "data.root": str(place.folder / "images")})

    seen = [now()]
    weights.write_bytes(b"two")
    seen.append(now())
    (images / "b.JPEG").write_bytes(b"123")
    seen.append(now())
    (images / "b.JPEG").write_bytes(b"1234")
    seen.append(now())
    monkeypatch.setattr(runner, "versions", lambda: {"torch": "0"})
    seen.append(now())
    assert len(set(seen)) == len(seen)
    assert now() == seen[-1]


def test_key_follows_the_library(key, monkeypatch, tmp_path):
    seen = set()
    for text in ("a = 1", "a = 2"):
        (tmp_path / "code.py").write_text(text)
        monkeypatch.setattr(runner, "__file__", str(tmp_path / "reproduce.py"))
        seen.add(key())
    assert len(seen) == 2


def test_key_follows_what_the_environment_chooses(key, monkeypatch):
    """Weights named by $NSLIB_WEIGHTS are no parameter of the notebook, and `random` is no file."""
    seen = []
    for weights in ("random", "pretrained"):
        monkeypatch.setenv("NSLIB_WEIGHTS", weights)
        seen.append(key("imagenet"))
    assert seen[0] != seen[1]


# Names and parameters


def test_notebooks_by_name_and_number(place):
    for name in ("01_a", "01b_c", "02_b", "explore"):
        place.add(name)
    for copied in ("02_b.partial", "02_b.nbconvert", "01_a-Copy1"):
        (place.notebooks / f"{copied}.ipynb").touch()

    def found(*names):
        return [p.stem for p in find_notebooks(list(names))]

    assert found() == ["01_a", "01b_c", "02_b"]
    assert found("02", "01b") == ["02_b", "01b_c"]
    assert found("01_a", "01_a.ipynb", "01") == ["01_a"]  # once, however often it is named
    with pytest.raises(ValueError, match=r"no notebook '07': there are 01_a, 01b_c, 02_b"):
        find_notebooks(["01", "07"])


def test_no_notebooks_at_all(place):
    with pytest.raises(ValueError, match=r"no notebooks in .*: make them from their sources with `make notebooks`"):
        find_notebooks([])


@pytest.mark.parametrize(
    ("parameters", "lacking"),
    [('profile = "smoke"', "overrides, run_name"), ('profile = "smoke"\nrun_name = ""\noveride = {}', "overrides")],
)
def test_parameters_cell_that_lacks_one(place, parameters, lacking):
    place.add("01_fine")
    place.add("02_lacks", parameters=parameters)
    message = f"02_lacks.ipynb: its cell tagged `parameters` lacks {lacking}: add them there"
    with pytest.raises(ValueError, match=message):
        reproduce([], "smoke")
    assert place.log() == []  # told before anything runs


def test_wrong_settings_are_told_before_anything_runs(place):
    place.add("01_first")
    with pytest.raises(ValueError, match="profile must be one of"):
        reproduce([], "fast")
    with pytest.raises(ValueError, match="no setting 'steps'"):
        reproduce([], "smoke", overrides={"steps": 1})
    assert place.log() == []


def test_sources_are_executed_into_their_notebooks(place):
    (place.notebooks / "01_first.py").write_text(
        '# %% [markdown]\n# # Title\n\n# %% tags=["parameters"]\nprofile = "smoke"\n\n# %%\nprint(profile, 6 * 7)\n'
    )
    files.execute_sources()
    contents = (place.notebooks / "01_first.ipynb").read_bytes()
    cells = nbformat.read(place.notebooks / "01_first.ipynb", as_version=4).cells
    assert [c.cell_type for c in cells] == ["markdown", "code", "code"]
    assert cells[1].metadata.tags == ["parameters"]
    assert cells[2].outputs[0].text == "smoke 42\n"
    files.execute_sources()
    assert (place.notebooks / "01_first.ipynb").read_bytes() == contents  # nothing that changes by itself


def test_single_sources_are_executed_by_name_or_number(place):
    for name in ("01_first", "02_second", "03_third"):
        (place.notebooks / f"{name}.py").write_text("# %%\n6 * 7\n")
    files.execute_sources(("03", "01_first"))
    assert sorted(p.stem for p in place.notebooks.glob("*.ipynb")) == ["01_first", "03_third"]
    with pytest.raises(ValueError, match="no source 04: there are 01_first, 02_second, 03_third"):
        files.execute_sources(("01", "04"))
    (place.notebooks / "12_claims.py").write_text('# %% tags=["reads-records"]\n6 * 7\n')
    with pytest.raises(ValueError, match="12_claims tells of what the others have found: execute all"):
        files.execute_sources(("02", "12"))
    assert sorted(p.stem for p in place.notebooks.glob("*.ipynb")) == ["01_first", "03_third"]


def test_marker_that_cannot_be_read_counts_as_none(tmp_path):
    marker = tmp_path / "x.done.json"
    assert runner._marked(marker) == {}
    for text in ("", "half of", json.dumps({"seconds": 1})):
        marker.write_text(text)
        assert runner._marked(marker) == {}
