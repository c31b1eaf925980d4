"""The benchmarks run to their end and close with a record of what they timed; no time is judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SMALL = {
    "attack_step": ("--pairs", "1", "--batch", "8"),
    "corruptions": ("--size", "32", "--images", "2", "--rounds", "1", "--workers", "1"),
    "disguise": ("--images", "1", "--patches", "1"),
    "finetune_round": ("--pairs", "1", "--steps", "2", "--batch", "16", "--pool", "32", "--heldout", "16"),
    "noise_step": ("--pairs", "1", "--batch", "16"),
    "render": ("--count", "16", "--runs", "1"),
}


def test_all_are_run_here():
    files = {p.stem for p in (ROOT / "benchmarks").glob("*.py")}
    assert files == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_benchmark(name):
    if name == "corruptions":
        pytest.importorskip("imagecorruptions")
    command = [sys.executable, str(Path("benchmarks") / f"{name}.py"), *SMALL[name]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *lines, record = done.stdout.splitlines()
    assert lines
    found = json.loads(record)
    assert {"config", "versions", "commit", "hardware", "made"} < set(found)
    figures = [value for key, value in found.items() if "ratio" in key or key.endswith("_second")]
    assert figures
    assert all(value for value in figures)
