"""The notebooks as files: where they lie, what their cells say, and how they are written."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

from nslib.report.gather import figure_folders
from nslib.runtime import atomic_path, checkout, whole_files

# Messages to and from kernels are encrypted where the kernel can: without, each warns that its port is open. A kernel
# is ended at once: its cells have written all there is, and an orderly end takes 2 s.
KERNELS = Config(
    {"KernelManager": {"transport_encryption": "auto"}, "NotebookClient": {"shutdown_kernel": "immediate"}}
)


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

    Copies of them count for nothing: what JupyterLab's "Duplicate" and nbconvert leave in the folder has a `-` or a `.`
    in its name.

    Raises:
        ValueError: no such notebook.
    """
    known = {p.stem: p for p in sorted(notebook_folder().glob("[0-9]*.ipynb")) if re.fullmatch(r"\w+", p.stem)}
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


def longest_first(notebooks: Sequence[Path]) -> list[Path]:
    """In the order of the most minutes that each took in any run, so that no long one is begun when the others have
    ended; those without a record come last. A run that found in the store what it needed tells little by itself."""
    minutes = {notebook.stem: 0.0 for notebook in notebooks}
    for record in (p for folder in figure_folders() for p in whole_files(folder, "*/records/*.json")):
        if record.stem in minutes:
            minutes[record.stem] = max(minutes[record.stem], _minutes(record))
    return sorted(notebooks, key=lambda notebook: -minutes[notebook.stem])


def _minutes(record: Path) -> float:
    try:
        return float(json.loads(record.read_text(encoding="utf-8"))["minutes"])
    except (OSError, ValueError, KeyError, TypeError):  # damaged, or of a command
        return 0.0


def read_cells(notebook: Path) -> list[nbformat.NotebookNode]:
    """The cells of an `.ipynb` in their order."""
    return nbformat.read(notebook, as_version=4).cells


def reads_records(cells: list[nbformat.NotebookNode]) -> bool:
    """Whether one of a notebook's cells is tagged `reads-records`: then it tells of what the others have found."""
    return any("reads-records" in c.metadata.get("tags", []) for c in cells)


def execute_sources(names: Collection[str] = ()) -> None:
    """Write `paper_nb/*.ipynb` anew from their paired .py, executed at their own defaults, the smoke profile.

    Args:
        names: of notebooks, or their numbers; default: all.
    Raises:
        ValueError: no such source, or one that tells of the records of all others.
    """
    import jupytext  # a third of a second, which running the notebooks does without
    from jupytext.config import load_jupytext_config

    sources = {source: {source.stem, source.stem.split("_")[0]} for source in sorted(notebook_folder().glob("*.py"))}
    if unknown := set(names).difference(*sources.values()):
        raise ValueError(f"no source {', '.join(sorted(unknown))}: there are {', '.join(s.stem for s in sources)}")
    chosen = {s: jupytext.read(s) for s, known in sources.items() if not names or known & {*names}}
    if names and (telling := [s.stem for s, notebook in chosen.items() if reads_records(notebook.cells)]):
        raise ValueError(f"{', '.join(telling)} tells of what the others have found: execute all, without names")
    for source, notebook in chosen.items():
        folder = {"metadata": {"path": str(source.parent)}}
        NotebookClient(notebook, kernel_name="python3", resources=folder, record_timing=False, config=KERNELS).execute()
        for number, cell in enumerate(notebook.cells):
            cell["id"] = f"{source.stem}-{number:02}"  # stable: a diff shows what changed
        if config := load_jupytext_config(str(source)):  # as JupyterLab writes it: saving there changes nothing
            notebook.metadata["jupytext"] = {"notebook_metadata_filter": config.notebook_metadata_filter}
        write_notebook(notebook, source.with_suffix(".ipynb"))
        print(source.with_suffix(".ipynb").name, flush=True)


def write_notebook(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write atomically, without progress bars: they are of no use once the work is done."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                o for o in cell.outputs if "application/vnd.jupyter.widget-view+json" not in o.get("data", {})
            ]
    notebook.metadata.pop("widgets", None)
    with atomic_path(path) as partial:
        nbformat.write(notebook, partial)
