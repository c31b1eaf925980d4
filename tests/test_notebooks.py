"""The notebooks as files: paired, short, tagged, executed; and the check of their outputs bites."""

import re
import shutil
import subprocess
import sys

import jupytext
import nbformat
import pytest
from conftest import ROOT

from nslib.report.claims import read_claims

FOLDER = ROOT / "paper_nb"
NOTEBOOKS = sorted(p for p in FOLDER.glob("*.ipynb") if re.fullmatch(r"\w+", p.stem))  # copies do not count
SOURCES = sorted(FOLDER.glob("*.py"))
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
CHECKED = FOLDER / "01_patch_nullspace.ipynb"
FORBIDDEN = {
    "error handling": r"^\s*(try|except)\b.*:",
    "a class": r"^\s*class\s",
    "a changed import path": r"sys\.path|PYTHONPATH",
    "an installation": r"\bpip\b|\bconda\b",
    "an absolute path": r"""["'](/|~|[A-Za-z]:\\)""",
    "a shell command": r"^\s*[!%]",
    "a training loop": r"\.backward\(|\.zero_grad\(|optim\.",
}


def code_cells(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def test_every_notebook_has_its_source_and_every_source_its_notebook():
    assert [p.stem for p in NOTEBOOKS] == [p.stem for p in SOURCES]


@EACH
def test_source_and_notebook_say_the_same(path):
    cells, source = nbformat.read(path, as_version=4).cells, jupytext.read(path.with_suffix(".py")).cells
    assert [c.cell_type for c in cells] == [c.cell_type for c in source]
    for a, b in zip(cells, source, strict=True):
        assert a.source == b.source
        assert a.metadata.get("tags", []) == b.metadata.get("tags", [])


@EACH
def test_jupyterlab_leaves_both_files_as_they_are(path, tmp_path):
    """Opened and saved by its contents manager, which pairs the two: else a record made there has a changed commit."""
    lab = pytest.importorskip("jupytext.sync_contentsmanager")
    server = pytest.importorskip("jupyter_server.services.contents.largefilemanager")
    both = [path, path.with_suffix(".py")]
    (tmp_path / "paper_nb").mkdir()
    for file in (ROOT / "pyproject.toml", *both):
        shutil.copy(file, tmp_path / file.relative_to(ROOT))
    manager = lab.build_sync_jupytext_contents_manager_class(server.LargeFileManager)(root_dir=str(tmp_path))
    model = manager.get(f"paper_nb/{path.name}")
    model["content"]["metadata"]["kernelspec"]["display_name"] = "Python 3 (ipykernel)"  # what the kernel calls itself
    manager.save(model, f"paper_nb/{path.name}")
    for file in both:
        assert (tmp_path / "paper_nb" / file.name).read_text() == file.read_text()


@EACH
def test_parameters_cell(path):
    """One cell, the first of code, at the smoke profile: papermill injects after it, nbval runs it as it is."""
    cells = code_cells(nbformat.read(path, as_version=4))
    tagged = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert tagged[0] is cells[0]
    names = {}
    exec(tagged[0].source, names)
    expected = {"profile": "smoke", "run_name": "", "overrides": {}}
    assert {k: names[k] for k in expected} == expected
    assert names.keys() - {"__builtins__"} == expected.keys()


@EACH
def test_cells_are_few_and_short(path):
    cells = code_cells(nbformat.read(path, as_version=4))
    assert len(cells) <= 13
    lengths = [len(c.source.splitlines()) for c in cells]
    assert max(lengths) <= 15, f"cell {lengths.index(max(lengths))}"


@EACH
@pytest.mark.parametrize("what", FORBIDDEN)
def test_code_is_calls_only(path, what):
    for cell in code_cells(nbformat.read(path, as_version=4)):
        found = re.search(FORBIDDEN[what], cell.source, re.MULTILINE)
        assert not found, f"{what}: {found.group()}"


@EACH
def test_notebook_is_committed_as_executed(path):
    notebook = nbformat.read(path, as_version=4)
    cells = code_cells(notebook)
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    outputs = [o for c in cells for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert [o for o in outputs if o.output_type in ("execute_result", "display_data")]
    told = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stderr")
    assert "Warning" not in told
    assert path.stat().st_size < 2_000_000


@EACH
def test_outputs_tell_nothing_of_the_machine(path):
    text = path.read_text()
    assert str(ROOT) not in text
    assert not re.search(r"/(home|Users|root|tmp)/\w", text)


@EACH
def test_records_go_under_the_notebooks_own_name(path):
    """And every claim that the table gives to this notebook is judged in it, and no other."""
    code = "\n".join(c.source for c in code_cells(nbformat.read(path, as_version=4)))
    if path.stem[0].isdigit():
        assert f'nslib.Record("{path.stem}"' in code
        assert "record.save(" in code
    claims = read_claims()
    own = claims[claims.notebook == path.stem]
    judged = set(re.findall(r"""record\.judge\(\s*["'](C\d+)["'],\s*["'](\w+)["']""", code))
    assert judged == set(zip(own.claim, own.part, strict=True))


@EACH
def test_prose_begins_with_title_claim_and_source(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "2403.10476" in first.source


@pytest.mark.slow
def test_a_changed_output_is_noticed(tmp_path, monkeypatch):
    """A copy of a notebook, up to its first tagged cell, with one digit of that cell's output altered."""
    for name in ("NSLIB_IMAGENET", "NSLIB_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    notebook = nbformat.read(CHECKED, as_version=4)
    tagged = [i for i, c in enumerate(notebook.cells) if "nbval-check-output" in c.metadata.get("tags", [])]
    notebook.cells = notebook.cells[: tagged[0] + 1]
    (output,) = [o for o in notebook.cells[-1].outputs if o.output_type == "execute_result"]
    for kind, text in output.data.items():
        output.data[kind] = re.sub(r"\d(?=\D*$)", lambda d: str((int(d.group()) + 1) % 10), text)
        assert output.data[kind] != text
    nbformat.write(notebook, tmp_path / CHECKED.name)

    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml"]
    options = ["--nbval-lax", "--nbval-current-env", "--nbval-sanitize-with", ROOT / "tests" / "nbval_sanitize.cfg"]
    done = subprocess.run([*command, *options, CHECKED.name], cwd=tmp_path, capture_output=True, text=True, timeout=250)
    passed = len(code_cells(notebook)) - 1
    assert f"1 failed, {passed} passed" in done.stdout, done.stdout[-3000:] + done.stderr[-1000:]
    assert done.returncode == 1
