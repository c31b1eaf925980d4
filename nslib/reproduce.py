"""Run the notebooks headless: each once unless something it depends on has changed, and whatever happens to others."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial as bound
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError
from papermill.exceptions import PapermillExecutionError

from nslib.machine.makers import only_maker
from nslib.machine.workers import KILLED, threads, workers
from nslib.notebooks import KERNELS, find_notebooks, longest_first, read_cells, reads_records, write_notebook
from nslib.profiles import resolve
from nslib.report.claims import HOLDS, UNTESTABLE
from nslib.report.gather import figure_folders, short_hash
from nslib.report.record import displaced
from nslib.runtime import (
    data_path,
    figures_path,
    pick_device,
    quiet,
    runs_path,
    to_json,
    versions,
    whole_files,
    write_text,
)
from nslib.settings import Settings
from nslib.study.ready import check_images, check_study

DONE, SKIPPED, FAILED, LEFT = "done", "unchanged", "FAILED", "left"
_AT_A_TIME = 4  # notebooks, at most: each holds its own models and images in memory


@dataclass(frozen=True)
class Outcome:
    """What became of one notebook."""

    notebook: str
    status: str
    seconds: float
    held: int = 0
    tested: int = 0
    missed: int = 0  # rounds of finetuning that went on with a noise above eps
    error: str = ""


def reproduce(
    names: list[str],
    profile: str,
    *,
    run_name: str = "",
    overrides: dict[str, Any] | None = None,
    force: bool = False,
    minutes: float = math.inf,
    jobs: int = 0,
) -> list[Outcome]:
    """Run notebooks through papermill and print a line for each and a table at the end.

    Executed copies go to `runs/<run name>/`, figures and records to `figures/<run name>/`. A notebook is skipped if its
    success marker matches its source, its parameters, the library, the inputs and the versions. One that fails leaves
    `<name>.partial.ipynb` to look at and does not stop the others.

    Args:
        force: forget which notebooks are done now; a call that goes on from this one leaves it out.
        minutes: after which the kernel is stopped; notebooks that are not done are `left`. The store keeps what was
            computed, down to the last saved step of a training, so that the same call goes on from there.
        jobs: notebooks at a time, with a like part of torch's threads each; 0: a thread each, at most four, and one
            notebook on a GPU. With several those that took longest before begin; what two of them need is computed by
            one, and the other waits.
    Raises:
        ValueError: unknown profile, setting or notebook, a notebook whose parameters cell lacks one of ours, no time at
            all, as `check_study`, or where all notebooks are to be run as `check_images`.
    """
    if not minutes > 0:
        raise ValueError(f"minutes must be > 0, got {minutes}")
    if jobs < 0:
        raise ValueError(f"jobs must be >= 0, got {jobs}")
    deadline = time.monotonic() + 60 * minutes
    settings = resolve(profile, run_name, overrides)
    check_study(settings)
    parameters = {"profile": profile, "run_name": settings.run_name, "overrides": overrides or {}}
    notebooks = find_notebooks(names)
    last = [notebook for notebook in notebooks if reads_records(read_cells(notebook))]  # they tell of the others
    first = [notebook for notebook in notebooks if notebook not in last]
    for notebook in notebooks:
        _check_parameters(notebook, parameters)
        if told := displaced(notebook.stem, settings):
            print(told, flush=True)
        if force:
            _marker(runs_path(settings.run_name), notebook).unlink(missing_ok=True)
    if not names:  # single ones take a part of the images
        check_images(settings)
    run = bound(
        _run,
        parameters=parameters,
        folder=runs_path(settings.run_name),
        inputs=_inputs_digest(settings),
        deadline=deadline,
    )
    jobs = min(jobs or _default_jobs(settings), len(first))
    found = _at_once(run, longest_first(first) if jobs > 1 else first, jobs, total=len(notebooks))
    found |= _at_once(run, last, 1, total=len(notebooks), before=len(first))
    outcomes = [found[notebook] for notebook in (*first, *last)]
    print(_closing_table(outcomes))
    return outcomes


def _default_jobs(settings: Settings) -> int:
    return min(threads(), _AT_A_TIME) if pick_device(settings.device).type == "cpu" else 1


def _at_once(
    run: Callable[[Path], Outcome], notebooks: Sequence[Path], jobs: int, *, total: int, before: int = 0
) -> dict[Path, Outcome]:
    """The outcomes of notebooks, begun in their order, of which so many run at a time."""
    found: dict[Path, Outcome] = {}
    with workers(jobs) as submit:
        running: dict[Future[Outcome], Path] = {}
        for i, notebook in enumerate(notebooks, before + 1):
            print(f"[{i}/{total}] {notebook.stem} ...", flush=True)
            running[submit(run, notebook)] = notebook
            while len(running) == jobs or (running and i == before + len(notebooks)):
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    ended = running.pop(future)
                    outcome = found[ended] = _outcome(future, ended)
                    print(f"{ended.stem} {outcome.status}, {outcome.seconds:.0f} s {outcome.error}", flush=True)
    return found


def _outcome(future: Future[Outcome], notebook: Path) -> Outcome:
    try:
        return future.result()
    except KILLED:
        told = "its process was killed, or one beside it, such as for want of memory: try --jobs 1"
        return Outcome(notebook.stem, FAILED, 0.0, error=told)


def _check_parameters(notebook: Path, parameters: dict[str, Any]) -> None:
    """papermill only logs a parameter that a notebook does not know; here it is an error."""
    known = papermill.inspect_notebook(str(notebook))
    missing = parameters.keys() - known.keys()
    if missing:
        raise ValueError(
            f"{notebook.name}: its cell tagged `parameters` lacks {', '.join(sorted(missing))}: add them there"
        )


def _marker(folder: Path, notebook: Path) -> Path:
    """What tells that a notebook was run to its end, and from what."""
    return folder / f"{notebook.stem}.done.json"


def _run(notebook: Path, *, folder: Path, deadline: float, **how) -> Outcome:
    """What became of a notebook; where another call with this run name and store is at it, after that one's end."""
    patience = -1 if math.isinf(deadline) else max(0, deadline - time.monotonic())
    with ExitStack() as held:
        try:
            held.enter_context(only_maker(folder / notebook.name, patience=patience))
        except ValueError:
            return Outcome(notebook.stem, LEFT, patience)
        except OSError:  # a store that may only be read has no locks
            pass
        return _run_alone(notebook, folder=folder, deadline=deadline, **how)


def _run_alone(notebook: Path, *, parameters: dict[str, Any], folder: Path, inputs: str, deadline: float) -> Outcome:
    final = folder / notebook.name
    marker = _marker(folder, notebook)
    partial = final.with_suffix(".partial.ipynb")
    record = figures_path(parameters["run_name"]) / "records" / f"{notebook.stem}.json"
    key = _key(notebook, parameters, inputs)
    if final.is_file() and _marked(marker) == {"key": key, "record": _hash(record)} and (told := _told(record)):
        return Outcome(notebook.stem, SKIPPED, 0.0, *told)
    if time.monotonic() >= deadline:
        return Outcome(notebook.stem, LEFT, 0.0)
    marker.unlink(missing_ok=True)
    final.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        _execute(notebook, partial, parameters, deadline)
        write_notebook(nbformat.read(partial, as_version=4), final)
        partial.unlink()
        seconds = time.monotonic() - started
        write_text(marker, to_json({"key": key, "record": _hash(record)}))
    except CellTimeoutError:
        partial.unlink(missing_ok=True)
        return Outcome(notebook.stem, LEFT, time.monotonic() - started)
    except PapermillExecutionError as error:
        told = f"{error.ename}: {error.evalue}".splitlines()[0][:160]
        return Outcome(notebook.stem, FAILED, time.monotonic() - started, error=f"{told} (see {partial})")
    except Exception as error:  # a kernel that died, a full disk: the other notebooks still run
        return Outcome(
            notebook.stem, FAILED, time.monotonic() - started, error=f"{type(error).__name__}: {error}"[:160]
        )
    return Outcome(notebook.stem, DONE, seconds, *(_told(record) or ()))


def _execute(notebook: Path, partial: Path, parameters: dict[str, Any], deadline: float) -> None:
    """papermill; once more where the kernel dies before any cell has run: two that start at once may take one port."""

    def execute() -> None:
        papermill.execute_notebook(
            str(notebook),
            str(partial),
            parameters=parameters,
            cwd=str(notebook.parent),
            kernel_name="python3",
            progress_bar=False,
            config=KERNELS,
            timeout_func=lambda cell: None if math.isinf(deadline) else max(1, deadline - time.monotonic()),
        )

    with quiet("papermill"):
        try:
            execute()
        except RuntimeError as error:
            if "before replying" not in str(error):  # jupyter_client's words
                raise
            execute()


def _marked(marker: Path) -> dict[str, str]:
    try:
        told = json.loads(marker.read_text(encoding="utf-8"))
        return {name: told[name] for name in ("key", "record")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _hash(record: Path) -> str:
    return short_hash(record) if record.is_file() else ""


def _told(path: Path) -> tuple[int, int, int] | None:
    """(held, tested, missed) of a notebook's record: parts of claims, and rounds of finetuning that missed eps.

    None where there is no record, a damaged one, or not all of its figures and tables.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        verdicts = [v["verdict"] for v in record["verdicts"]]
        whole = all((path.parent.parent / file).is_file() for file in record.get("files", ()))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not whole:
        return None
    missed = record.get("facts", {}).get("missed_eps", {})
    return verdicts.count(HOLDS), len(verdicts) - verdicts.count(UNTESTABLE), sum(missed.values())


def _closing_table(outcomes: list[Outcome]) -> str:
    width = max(len(o.notebook) for o in outcomes)
    lines = [f"{'notebook':{width}}  {'status':9}  seconds  claims held / tested"]
    for o in outcomes:
        told = f"rounds that missed eps: {o.missed}" if o.missed else o.error
        lines.append(f"{o.notebook:{width}}  {o.status:9}  {o.seconds:7.0f}  {o.held} / {o.tested}  {told}".rstrip())
    return "\n" + "\n".join(lines)


def _key(notebook: Path, parameters: dict[str, Any], inputs: str) -> str:
    """Hash of everything on which a notebook's result depends. Outputs in the source do not count."""
    cells = read_cells(notebook)
    package = Path(__file__).parent
    library = [*sorted(package.rglob("*.py")), *package.glob("*.mplstyle"), *sorted(data_path("reference").glob("*"))]
    library += _records_read(notebook, cells)
    sources = [hashlib.sha256(p.read_bytes()).hexdigest() for p in library]
    asked = [(c.cell_type, c.source) for c in cells]
    return hashlib.sha256(to_json([asked, parameters, sources, inputs, versions()]).encode()).hexdigest()


def _records_read(notebook: Path, cells: list[nbformat.NotebookNode]) -> list[Path]:
    """Records of all other notebooks, of every run, if it reads them."""
    folders = figure_folders() if reads_records(cells) else ()
    return [p for f in folders for p in whole_files(f, "*/records/*.json") if p.stem != notebook.stem]


def _inputs_digest(settings: Settings) -> str:
    """Settings as resolved, contents of the weights, names and sizes of the images."""
    h = hashlib.sha256(to_json(settings).encode())
    files = sorted(data_path("checkpoints").glob("*.safetensors"))
    for weights in (Path(name).expanduser() for name in (settings.weights, settings.surrogate_weights)):
        files += [weights] if weights.is_file() else whole_files(weights, "*.safetensors") if weights.is_dir() else []
    for path in files:
        h.update(hashlib.sha256(path.read_bytes()).digest())
    for root in settings.data.paths().values():
        for folder, _, names in sorted(os.walk(Path(root).expanduser(), followlinks=True)):
            h.update(str([(folder, n, _size(os.path.join(folder, n))) for n in sorted(names)]).encode())
    return h.hexdigest()


def _size(path: str) -> int | None:
    """Of a file in bytes; None of a link to nowhere."""
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        return None
