"""Verdicts under settings that are not the claim's: none is given, and the notebook comes to its end."""

import json

import matplotlib.pyplot as plt
import pytest
from conftest import ROOT

FEW = {"images": 16, "pool": 16, "heldout": 8, "suite.batch": 16}


@pytest.fixture
def verdicts(monkeypatch, tmp_path):
    def run(notebook, **overrides):
        monkeypatch.setenv("NSLIB_FIGURES", str(tmp_path))
        code = (ROOT / "paper_nb" / f"{notebook}.py").read_text(encoding="utf-8")
        code = code.replace('profile = "smoke"', 'profile = "laptop"')
        code = code.replace("overrides = {}", f"overrides = {FEW | overrides}")
        exec(compile(code, f"{notebook}.py", "exec"), {})
        plt.close("all")
        record = json.loads((tmp_path / "laptop" / "records" / f"{notebook}.json").read_text())
        return {f"{v['claim']}.{v['part']}": v["verdict"] for v in record["verdicts"]}

    return run


def test_02_with_a_single_lambda(verdicts):
    few = {"synthesis.lambdas": [1.0], "synthesis.noise.steps": 2, "synthesis.noise.batch": 8}
    found = verdicts("02_noise_synthesis", **few)
    assert found["C6.norm"] == "not testable"  # a rank needs two
    assert found["C4.match"] in ("holds", "not shown", "does not hold")


def test_03_without_the_papers_eps(verdicts):
    few = {"approximate.eps": [1.9], "approximate.starts": 1, "approximate.reach_images": 8}
    assert verdicts("03_approximate_nullspace", **few) == {"C7.before": "not testable"}


def test_04_at_another_eps(verdicts):
    few = {"closure.noise.eps": 0.1, "closure.noises": 2, "closure.pairs": 1, "closure.control_pairs": 1}
    few |= {"closure.judged_images": 16, "closure.images": 8, "closure.draws": 2, "closure.step": 1.0}
    few |= {"closure.grid_step": 0.5, "closure.spans": [1, 2], "closure.convex": [2]}
    assert verdicts("04_closure", **few) == {"C15.scale": "not testable", "C16.convex": "not testable"}
