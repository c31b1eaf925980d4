"""Run the notebooks headless: each once unless something it depends on has changed, and whatever happens to others."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import partial as bound
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from nslib.profiles import Settings, resolve
from nslib.report.gather import figure_folders
from nslib.runtime import (
    atomic_path,
    checkout,
    data_path,
    figures_path,
    pick_device,
    runs_path,
    to_json,
    versions,
    whole_files,
    write_text,
)
from nslib.workers import KILLED, threads, workers

# Messages to and from kernels are encrypted where the kernel can: without, each warns that its port is open.
_KERNELS = Config({"KernelManager": {"transport_encryption": "auto"}})
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


def notebook_folder() -> Path:
    """Where the notebooks lie.

    Raises:
        FileNotFoundError: this is an installed wheel, which carries none.
    """
    repository = checkout()
    if repository is None:
        raise FileNotFoundError(
            "the notebooks are in the repository, not in the wheel: run this in a clone, as `make reproduce`"
        )
    return repository / "paper_nb"


def find_notebooks(names: list[str]) -> list[Path]:
    """Notebooks by name (`02_noise_synthesis`) or number (`02`), all numbered ones without names.

    Raises:
        ValueError: no such notebook.
    """
    known = {p.stem: p for p in sorted(notebook_folder().glob("[0-9]*.ipynb")) if ".partial" not in p.name}
    if not known:
        raise ValueError(f"no notebooks in {notebook_folder()}: make them from their sources with `make notebooks`")
    chosen = []
    for name in names:
        stem = name.removesuffix(".ipynb")
        matches = [p for n, p in known.items() if stem in (n, n.split("_")[0])]
        if not matches:
            raise ValueError(f"no notebook {name!r}: there are {', '.join(known)}")
        chosen += [m for m in matches if m not in chosen]
    return chosen or list(known.values())


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
        minutes: after which the kernel is stopped; notebooks that are not done are `left`. The store keeps what was
            computed, down to the last saved step of a training, so that the same call goes on from there.
        jobs: notebooks at a time, with a like part of torch's threads each; 0: a thread each, at most four, and one
            notebook on a GPU. What two of them need is computed by one, and the other waits.
    Raises:
        ValueError: unknown profile, setting or notebook, a notebook whose parameters cell lacks one of ours, or no
            time at all.
    """
    if not minutes > 0:
        raise ValueError(f"minutes must be > 0, got {minutes}")
    if jobs < 0:
        raise ValueError(f"jobs must be >= 0, got {jobs}")
    deadline = time.monotonic() + 60 * minutes
    settings = resolve(profile, run_name, overrides)
    parameters = {"profile": profile, "run_name": settings.run_name, "overrides": overrides or {}}
    notebooks = find_notebooks(names)
    last = [notebook for notebook in notebooks if _reads_records(_cells(notebook))]  # they tell of the others
    first = [notebook for notebook in notebooks if notebook not in last]
    for notebook in notebooks:
        _check_parameters(notebook, parameters)
    run = bound(_run, parameters=parameters, folder=runs_path(settings.run_name), inputs=_inputs_digest(settings),
                force=force, deadline=deadline)  # fmt: skip
    outcomes = _at_once(run, first, min(jobs or _default_jobs(settings), len(first)), total=len(notebooks))
    outcomes += _at_once(run, last, 1, total=len(notebooks), before=len(first))
    print(_closing_table(outcomes))
    return outcomes


def _default_jobs(settings: Settings) -> int:
    return min(threads(), _AT_A_TIME) if pick_device(settings.device).type == "cpu" else 1


def _at_once(
    run: Callable[[Path], Outcome], notebooks: Sequence[Path], jobs: int, *, total: int, before: int = 0
) -> list[Outcome]:
    """The outcomes of notebooks, in their order, of which so many run at a time."""
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
    return [found[notebook] for notebook in notebooks]


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


def _run(
    notebook: Path, *, parameters: dict[str, Any], folder: Path, inputs: str, force: bool, deadline: float
) -> Outcome:
    final = folder / notebook.name
    marker = final.with_suffix(".done.json")
    partial = final.with_suffix(".partial.ipynb")
    record = figures_path(parameters["run_name"]) / "records" / f"{notebook.stem}.json"
    key = _key(notebook, parameters, inputs)
    if not force and final.is_file() and _marked(marker) == key and (told := _told(record)):
        return Outcome(notebook.stem, SKIPPED, 0.0, *told)
    if time.monotonic() >= deadline:
        return Outcome(notebook.stem, LEFT, 0.0)
    marker.unlink(missing_ok=True)
    final.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    started = time.monotonic()
    try:
        papermill.execute_notebook(
            str(notebook),
            str(partial),
            parameters=parameters,
            cwd=str(notebook.parent),
            kernel_name="python3",
            progress_bar=False,
            config=_KERNELS,
            timeout_func=lambda cell: None if math.isinf(deadline) else max(1, deadline - time.monotonic()),
            shutdown_kernel="graceful" if math.isinf(deadline) else "immediate",
        )
        _write_notebook(nbformat.read(partial, as_version=4), final)
        partial.unlink()
        seconds = time.monotonic() - started
        write_text(marker, to_json({"key": key, "seconds": round(seconds, 1)}))
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


def _marked(marker: Path) -> str | None:
    try:
        return json.loads(marker.read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError):
        return None


def _told(path: Path) -> tuple[int, int, int] | None:
    """(held, tested, missed) of a notebook's record: parts of claims, and rounds of finetuning that missed eps.

    None where there is no record, or a damaged one.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        verdicts = [v["verdict"] for v in record["verdicts"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    missed = record.get("facts", {}).get("missed_eps", {})
    return verdicts.count("holds"), len(verdicts) - verdicts.count("not testable"), sum(missed.values())


def _closing_table(outcomes: list[Outcome]) -> str:
    width = max(len(o.notebook) for o in outcomes)
    lines = [f"{'notebook':{width}}  {'status':9}  seconds  claims held / tested"]
    for o in outcomes:
        told = f"rounds that missed eps: {o.missed}" if o.missed else o.error
        lines.append(f"{o.notebook:{width}}  {o.status:9}  {o.seconds:7.0f}  {o.held} / {o.tested}  {told}".rstrip())
    return "\n" + "\n".join(lines)


def _key(notebook: Path, parameters: dict[str, Any], inputs: str) -> str:
    """Hash of everything on which a notebook's result depends. Outputs in the source do not count."""
    cells = _cells(notebook)
    package = Path(__file__).parent
    library = [*sorted(package.rglob("*.py")), *package.glob("*.mplstyle"), *sorted(data_path("reference").glob("*"))]
    library += _records_read(notebook, cells)
    sources = [hashlib.sha256(p.read_bytes()).hexdigest() for p in library]
    asked = [(c.cell_type, c.source) for c in cells]
    return hashlib.sha256(to_json([asked, parameters, sources, inputs, versions()]).encode()).hexdigest()


def _cells(notebook: Path) -> list[nbformat.NotebookNode]:
    return nbformat.read(notebook, as_version=4).cells


def _reads_records(cells: list[nbformat.NotebookNode]) -> bool:
    """Whether one of a notebook's cells is tagged `reads-records`: then it tells of what the others have found."""
    return any("reads-records" in c.metadata.get("tags", []) for c in cells)


def _records_read(notebook: Path, cells: list[nbformat.NotebookNode]) -> list[Path]:
    """Records of all other notebooks, of every run, if it reads them."""
    folders = figure_folders() if _reads_records(cells) else ()
    return [p for f in folders for p in whole_files(f, "*/records/*.json") if p.stem != notebook.stem]


def _inputs_digest(settings: Settings) -> str:
    """Settings as resolved, contents of the weights, names and sizes of the images."""
    h = hashlib.sha256(to_json(settings).encode())
    files = sorted(data_path("checkpoints").glob("*.safetensors"))
    for weights in map(Path, (settings.weights, settings.surrogate_weights)):
        files += [weights] if weights.is_file() else whole_files(weights, "*.safetensors") if weights.is_dir() else []
    for path in files:
        h.update(hashlib.sha256(path.read_bytes()).digest())
    for root in settings.data.paths().values():
        for folder, _, names in sorted(os.walk(root)):
            h.update(str([(folder, n, os.path.getsize(os.path.join(folder, n))) for n in sorted(names)]).encode())
    return h.hexdigest()


def execute_sources() -> None:
    """Write each `paper_nb/*.ipynb` anew from its paired .py, executed at its own defaults, the smoke profile."""
    for source in sorted(notebook_folder().glob("*.py")):
        notebook = jupytext.read(source)
        folder = {"metadata": {"path": str(source.parent)}}
        NotebookClient(
            notebook, kernel_name="python3", resources=folder, record_timing=False, config=_KERNELS
        ).execute()
        for number, cell in enumerate(notebook.cells):
            cell["id"] = f"{source.stem}-{number:02}"  # stable: a diff shows what changed
        _write_notebook(notebook, source.with_suffix(".ipynb"))
        print(source.with_suffix(".ipynb").name, flush=True)


def _write_notebook(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write atomically, without progress bars: they are of no use once the work is done."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                o for o in cell.outputs if "application/vnd.jupyter.widget-view+json" not in o.get("data", {})
            ]
    notebook.metadata.pop("widgets", None)
    with atomic_path(path) as partial:
        nbformat.write(notebook, partial)
