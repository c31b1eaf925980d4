"""What a stranger installs: the files that describe it agree, and the wheel stands alone."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [Requirement(r) for r in sum(EXTRAS.values(), start=PROJECT["dependencies"])]


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def run(*command, cwd, **env) -> subprocess.CompletedProcess:
    """Run without the variables of this project, Python and make; pytest shows what was printed."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("NSLIB_", "PYTHON", "MAKE"))}
    done = subprocess.run(command, cwd=cwd, env=clean | env, capture_output=True, text=True)
    print(done.stdout, done.stderr, sep="\n")
    return done


def test_constraints_are_exact_and_unique():
    names = [canonicalize_name(pin.name) for pin in pins()]
    assert sorted(names) == sorted(set(names))
    for pin in pins():
        assert re.fullmatch(r"==[^*,]+", str(pin.specifier)), f"not an exact pin: {pin}"


def test_every_requirement_is_named_once_and_its_pin_satisfies_it():
    versions = {canonicalize_name(p.name): str(p.specifier).removeprefix("==") for p in pins()}
    names = [canonicalize_name(r.name) for r in REQUIREMENTS]
    assert sorted(names) == sorted(set(names))
    assert set(names) <= versions.keys()
    for requirement in REQUIREMENTS:
        assert versions[canonicalize_name(requirement.name)] in requirement.specifier


def test_constraints_pin_what_the_requirements_bring():
    """Nothing arrives at a version of its own choice, by the metadata of what is installed."""
    pinned = {canonicalize_name(pin.name) for pin in pins()}
    todo, seen = list(REQUIREMENTS), set()
    while todo:
        requirement = todo.pop()
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if key in seen:
            continue
        seen.add(key)
        for line in importlib.metadata.requires(requirement.name) or []:
            brought = Requirement(line)
            extras = requirement.extras or {""}
            if brought.marker is None or any(brought.marker.evaluate({"extra": e}) for e in extras):
                todo.append(brought)
    assert {name for name, _ in seen} <= pinned


def test_conda_and_make_install_the_same():
    extras = f"[{','.join(EXTRAS)}]"
    conda = re.findall(r"^ +- (.+)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    assert conda == [
        f"python {PROJECT['requires-python']}",
        "pip",
        "pip:",
        "-c constraints.txt",
        f"-e .{extras}",
    ]
    assert f"EXTRAS      := {extras[1:-1]}\n" in (ROOT / "Makefile").read_text()


def test_no_file_names_a_package_index():
    # The brackets keep this line from finding itself.
    pattern = "index[-]url|find[-]links"
    found = run("git", "grep", "-I", "-n", "--untracked", "-E", "-e", pattern, cwd=ROOT)
    assert found.returncode == 1, found.stdout


def test_import_is_light():
    code = """if True:
        import json, sys, time
        start = time.perf_counter()
        import nslib
        seconds = time.perf_counter() - start
        print(json.dumps([seconds, sorted({"torch", "timm"} & sys.modules.keys())]))
    """
    runs = [json.loads(run(sys.executable, "-c", code, cwd=ROOT).stdout) for _ in range(3)]
    assert [heavy for _, heavy in runs] == [[], [], []]
    assert min(seconds for seconds, _ in runs) < 0.5  # the least of three: other work may run


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_refuses_another_python(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "python3.9"  # this Python, under another version
    disguise = "import sys; sys.version_info, sys.version = (3, 9, 1), '3.9.1'; exec(sys.argv[1])"
    old.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{disguise}" "$2"\n')
    old.chmod(0o755)
    for python, message in ((old, "is 3.9.1"), ("python-none", "python-none not found")):
        refused = run("make", "lab", f"PYTHON={python}", cwd=tmp_path)
        assert refused.returncode != 0
        assert message in refused.stderr
        assert "make PYTHON=python3.12" in refused.stderr
        assert not (tmp_path / ".venv").exists()


@pytest.mark.slow
def test_wheel_stands_alone(tmp_path):
    target, empty = tmp_path / "target", tmp_path / "empty"
    empty.mkdir()

    def python(*arguments, **env):
        done = run(sys.executable, *arguments, cwd=empty, **env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    # --no-isolation: hatchling is installed, so that no registry is asked.
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("*.whl")
    python("-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(wheel))

    package = target / "nslib"
    for name in ("paper.mplstyle", "report/page.html.j2", "report/page.css"):
        assert (package / name).is_file(), name
    assert (package / "_data/reference/claims.csv").is_file()
    shipped = {path.name for path in (ROOT / "data/checkpoints").glob("*.safetensors")}
    assert shipped
    assert {path.name for path in (package / "_data/checkpoints").glob("*.safetensors")} == shipped

    # PYTHONPATH comes before the editable install of this repository.
    code = "import nslib; nslib.load_model('shapes_vit'); print(nslib.__file__)"
    assert "reproduce" in python("-m", "nslib", "--help", PYTHONPATH=str(target))
    loaded = python("-c", code, PYTHONPATH=str(target)).split()
    assert loaded[-1] == str(package / "__init__.py")


def test_the_readme_is_read_in_five_minutes():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_code_of_the_readme_runs_and_gives_what_it_says(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    *_, last = code.strip().splitlines()
    exec(compile(code.replace(last, f"table = {last}"), "README.md", "exec"), made := {})
    null, learned, table = made["null"], made["learned"], made["table"]
    assert f"exact: {null.dim} of {null.matrix.shape[1]} dimensions" in code
    assert f"# {tuple(made['invisible'].shape)}, add it" in code
    assert f"# {tuple(learned.noise.shape)}, on images" in code
    assert learned.gap_heldout < 0.03
    assert table.column.tolist() == ["clean", "fgsm"]
    assert (table.n == 500).all()
    assert (table.value > 50).all()
