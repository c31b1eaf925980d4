"""The written rules and the one function that applies them; and the record that a notebook leaves."""

import json
import math
import re
from dataclasses import replace

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from conftest import ROOT

from nslib.intervals import Estimate
from nslib.profiles import PROFILES, resolve
from nslib.report import claims
from nslib.report.claims import judge, read_claims
from nslib.report.record import Record, without_paths
from nslib.report.reference import printed
from nslib.study.testable import as_paper, noise_as_paper, sides, whole, whole_side

CLAIMS = read_claims()
EVERYWHERE = " ".join(PROFILES)


# The table


def test_all_nineteen_claims_are_there():
    assert list(dict.fromkeys(CLAIMS.claim)) == [f"C{i}" for i in range(1, 20)]
    assert not CLAIMS.duplicated(["claim", "part"]).any()


@pytest.mark.parametrize("row", list(CLAIMS.itertuples()), ids=lambda row: f"{row.claim}.{row.part}")
def test_row_can_be_read(row):
    assert row.bound in ("value", "low", "high")
    assert row.operator in (">", ">=", "<", "<=", "==")
    assert math.isfinite(row.threshold)
    assert row.profiles.split()
    assert set(row.profiles.split()) <= set(PROFILES)
    assert re.fullmatch(r"\d\db?_[a-z_]+", row.notebook)
    for text in (row.words, row.source, row.statistic, row.reason, row.cell):
        assert len(text) > 3
    # an interval bound is the pessimistic one
    assert not (row.bound == "low" and row.operator.startswith("<"))
    assert not (row.bound == "high" and row.operator.startswith(">"))


def test_rules_name_notebooks_as_they_are_called():
    for path in (ROOT / "paper_nb").glob("[0-9]*.ipynb"):
        number = path.stem.split("_")[0]
        assert {n for n in CLAIMS.notebook if n.split("_")[0] == number} <= {path.stem}


@pytest.mark.parametrize("notebook", CLAIMS.notebook.unique())
def test_rules_name_the_cell_that_judges_by_its_heading(notebook):
    headings, judged = [], {}
    for cell in nbformat.read(ROOT / "paper_nb" / f"{notebook}.ipynb", as_version=4).cells:
        if cell.cell_type == "markdown":
            headings += re.findall(r"^## (.+)$", cell.source, re.MULTILINE)
        else:
            calls = re.findall(r"""record\.judge\(\s*["'](C\d+)["'],\s*["'](\w+)["']""", cell.source)
            judged |= dict.fromkeys(calls, headings[-1] if headings else "")
    own = CLAIMS[CLAIMS.notebook == notebook]
    assert judged == dict(zip(zip(own.claim, own.part, strict=True), own.cell, strict=True))
    assert len(set(headings)) == len(headings)  # a link leads to the first of two


# What the notebooks ask of the settings before they judge; what they ask of data and models is not here.
NEEDS = {
    ("C7", "before"): lambda s: (
        noise_as_paper(replace(s.finetune, noise=s.approximate.noise)) and 0.03 in s.approximate.eps
    ),
    **dict.fromkeys([("C7", "after"), ("C8", "influence"), ("C18", "share")], lambda s: noise_as_paper(s.finetune)),
    **dict.fromkeys([("C9", "slope"), ("C10", "rise")], lambda s: as_paper(s.finetune)),
    **dict.fromkeys([("C11", "base"), ("C11", "plain")], lambda s: whole(s) and "plain" in s.finetuning.objectives),
    ("C12", "natural"): lambda s: as_paper(s.finetune) and has_rivals(s, "natural"),
    ("C12", "adversarial"): lambda s: as_paper(s.finetune) and has_rivals(s, "adversarial"),
    **dict.fromkeys([("C13", "eps"), ("C14", "random")], lambda s: as_paper(s.finetune) and len(s.finetuning.eps) > 2),
    ("C18", "cost"): lambda s: as_paper(s.finetune) and s.data.kind == "folder",  # shapes have no epoch
    ("C19", "fixed"): lambda s: as_paper(s.finetune) and s.finetuning.fixed_steps == 3000,
    **dict.fromkeys([("C15", "scale"), ("C16", "convex")], lambda s: s.closure.noise.eps == 0.03),
    ("C2", "logits"): lambda s: s.patch.peak == 0.5,
}


def has_rivals(settings, side):
    rivals = {"madry", "trades"} <= set(settings.finetuning.objectives)
    return rivals and whole_side(sides(settings.finetuning.columns)[side])


@pytest.mark.parametrize("row", list(CLAIMS.itertuples()), ids=lambda row: f"{row.claim}.{row.part}")
def test_a_claim_is_testable_at_the_profiles_that_its_row_names(row, monkeypatch):
    for name in ("NSLIB_IMAGENET", "NSLIB_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    need = NEEDS.get((row.claim, row.part), lambda _: True)
    assert [name for name in row.profiles.split() if not need(resolve(name))] == []


def test_what_the_notebooks_ask_of_the_settings_is_known():
    """Every judgement that a notebook leaves out under some condition."""
    for path in (ROOT / "paper_nb").glob("[0-9]*.py"):
        source = path.read_text(encoding="utf-8")
        left_out = re.findall(r"""record\.judge\("(C\d+)", "(\w+)", .* if .* else \[\]\)$""", source, re.MULTILINE)
        assert set(left_out) <= set(NEEDS)


def test_rules_agree_with_what_is_read_off_figure_3a():
    curves, rules = printed("figure3a").set_index("noise"), CLAIMS[CLAIMS.claim == "C4"].set_index("part")
    learned, permuted = curves.loc["learned"], curves.loc["permuted"]
    assert learned[["match_smallest", "match_largest"]].min(axis=None) == rules.threshold["match"]
    assert learned.gap_largest.max() == rules.threshold["gap"] < permuted.gap_largest.min()
    assert permuted.match_largest.max() < learned.match_largest.min()


def test_figure_4_is_read_off_after_every_round_relative_to_the_first():
    read_off = printed("figure4")
    assert read_off.step.tolist() == list(range(0, 800, 40))
    assert (read_off.iloc[0, 1:] == 1).all()
    assert read_off.norm.notna().all()
    assert read_off.dropna().step.tolist() == [0, 40, 760]  # of the other curves only these can be read


# Verdicts


def rule(monkeypatch, bound, operator, threshold, profiles=EVERYWHERE):
    table = pd.DataFrame(
        [dict(claim="C0", part="x", statistic="s", bound=bound, operator=operator, threshold=threshold)]
    ).assign(profiles=profiles)
    monkeypatch.setattr(claims, "read_claims", lambda: table)


def at(value, reach=0.1):
    return Estimate(value, value - reach, value + reach, 50)


@pytest.mark.parametrize(
    ("bound", "operator", "threshold", "good", "bad"),
    [
        ("value", ">", 1, at(1.01), at(1)),
        ("value", ">=", 1, at(1), at(0.99)),
        ("value", "<", 1, at(0.99), at(1)),
        ("value", "<=", 1, at(1), at(1.01)),
        ("value", "==", 1, at(1), at(1.01)),
        ("low", ">", 0, at(0.11), at(0.09)),  # low is .01 and -.01
        ("high", "<", 0, at(-0.11), at(-0.09)),
        ("low", ">=", 0.95, Estimate(0.99, 0.95, 1, 9), Estimate(0.99, 0.9499, 1, 9)),
    ],
)
def test_operators_and_bounds(monkeypatch, bound, operator, threshold, good, bad):
    rule(monkeypatch, bound, operator, threshold)
    assert judge("C0", "x", good, profile="laptop").verdict == "holds"
    missed = "does not hold" if bound == "value" else "not shown"  # the other end lies on the right side
    assert judge("C0", "x", bad, profile="laptop").verdict == missed
    for several in ([good, good, bad], [bad, good]):  # all of them must hold, and the worst is the one told
        verdict = judge("C0", "x", several, profile="laptop")
        assert verdict.verdict == missed
        assert (verdict.value, verdict.low, verdict.high) == (bad.value, bad.low, bad.high)


@pytest.mark.parametrize(("bound", "operator", "sign"), [("low", ">", 1), ("high", "<", -1)])
def test_what_is_refuted_is_told_from_what_is_not_shown(monkeypatch, bound, operator, sign):
    """One that is refuted decides, also beside a wider interval that reaches farther on the wrong side."""
    rule(monkeypatch, bound, operator, 0)
    good, wide, wrong = at(sign * 2), at(sign * 1, reach=9), at(-sign * 2)
    verdicts = [judge("C0", "x", several, profile="laptop") for several in ([good, wide], [wide, wrong, good])]
    assert [(v.verdict, v.value) for v in verdicts] == [("not shown", sign * 1), ("does not hold", -sign * 2)]


@pytest.mark.parametrize(
    ("bound", "operator", "estimates", "worst"),
    [
        ("value", ">", [at(5), at(2), at(7)], 2),
        ("value", "<=", [at(-5), at(-2), at(-7)], -2),
        ("value", "==", [at(1), at(-3), at(2)], -3),
        ("low", ">", [at(3, reach=2.5), at(2)], 3),  # of the wider interval
        ("high", "<", [at(-3, reach=2.5), at(-2)], -3),
    ],
)
def test_the_worst_of_many_decides(monkeypatch, bound, operator, estimates, worst):
    rule(monkeypatch, bound, operator, 0)
    assert judge("C0", "x", estimates, profile="laptop").value == worst


def test_of_several_with_names_the_one_that_decides_is_told(monkeypatch):
    rule(monkeypatch, "low", ">", 0)
    told = {"clean": at(2), "cw": at(0.05), "fgsm": at(0.05)}  # two alike: the first
    assert judge("C0", "x", told, profile="laptop").of == "cw"
    assert judge("C0", "x", {**told, "a": at(-1)}, profile="laptop").of == "a"
    assert judge("C0", "x", [*told.values()], profile="laptop").of == ""
    assert judge("C0", "x", {}, profile="laptop").verdict == "not testable"


def test_verdict_tells_all_of_its_estimate(monkeypatch):
    rule(monkeypatch, "low", ">", 0.5)
    verdict = judge("C0", "x", Estimate(0.7, 0.6, 0.8, 40, seeds=3), profile="full")
    assert (verdict.claim, verdict.part, verdict.rule, verdict.statistic) == ("C0", "x", "low > 0.5", "s")
    assert (verdict.value, verdict.low, verdict.high, verdict.n, verdict.seeds) == (0.7, 0.6, 0.8, 40, 3)


def test_not_testable(monkeypatch):
    rule(monkeypatch, "value", ">", 0, profiles="laptop full")
    assert judge("C0", "x", at(1), profile="smoke").verdict == "not testable"
    assert judge("C0", "x", at(1), profile="lap").verdict == "not testable"  # whole names only
    assert judge("C0", "x", [], profile="laptop").verdict == "not testable"
    assert judge("C0", "x", [], profile="laptop").value is None
    assert judge("C0", "x", at(1), profile="laptop").verdict == "holds"


@pytest.mark.parametrize("estimates", [[at(math.nan)], [at(1), at(math.nan)], [at(math.nan), at(1)]])
def test_no_verdict_from_a_number_that_is_none(monkeypatch, estimates):
    rule(monkeypatch, "value", ">", 0)
    with pytest.raises(ValueError, match="finite"):
        judge("C0", "x", estimates, profile="laptop")


@pytest.mark.parametrize(("claim", "part"), [("C99", "x"), ("C5", "norm")])
def test_unknown_claim(claim, part):
    with pytest.raises(KeyError, match=rf"no claim {claim}\.{part} in claims.csv, which holds C1\.dimensions"):
        judge(claim, part, at(1), profile="laptop")


@pytest.mark.parametrize(("bound", "operator"), [("middle", ">"), ("value", "=>")])
def test_rule_that_cannot_be_read(monkeypatch, bound, operator):
    rule(monkeypatch, bound, operator, 0)
    with pytest.raises(ValueError, match=r"claims.csv, C0\.x: bound must be one of .* and operator one of"):
        judge("C0", "x", at(1), profile="laptop")


# Records


def test_of_a_cell_that_is_run_twice_the_last_verdict_counts(folders):
    record = Record("02_noise_synthesis", resolve("laptop", "mine"))
    for gap in (0.2, 1):
        record.judge("C5", "gap", [at(1), at(gap)])
    record.judge("C6", "norm", at(1))
    assert record.summary()[["claim", "value"]].to_dict("list") == {"claim": ["C5", "C6"], "value": [1, 1]}


def test_a_record_in_the_place_of_one_with_other_settings_is_told(folders):
    Record("02_noise_synthesis", resolve("laptop", "mine")).save()
    Record("02_noise_synthesis", resolve("laptop", "mine"))
    Record("02_noise_synthesis", resolve("laptop", "other", {"images": 9}))
    Record("03_approximate_nullspace", resolve("laptop", "mine", {"images": 9}))
    with pytest.warns(UserWarning, match=r"figures/mine has results of 02_noise_synthesis .*\(images 2000, now 9\)"):
        Record("02_noise_synthesis", resolve("laptop", "mine", {"images": 9})).save()
    Record("02_noise_synthesis", resolve("laptop", "mine", {"images": 9}))
    Record("02_noise_synthesis", resolve("laptop", "mine"))  # back to the profile's own
    changes = {"images": 8, "pool": 7, "heldout": 6, "patch.images": 5}
    with pytest.warns(UserWarning, match="heldout 512, now 6; images 9, now 8; patch.images 64, now 5 and 1 more"):
        Record("02_noise_synthesis", resolve("laptop", "mine", changes))


def test_record_keeps_verdicts_files_and_how_they_were_made(folders):
    record = Record("02_noise_synthesis", resolve("laptop", "mine"))
    record.judge("C5", "gap", [at(1), at(0.2)])
    record.judge("C6", "norm", Estimate.exact(0.5))
    record.table("norms", pd.DataFrame({"lambda": [0.1, 1 / 3], "count": [2, 3]}))
    saved = record.save(seconds=1.5)
    folder = folders / "figures" / "mine"
    assert json.loads((folder / "records" / "02_noise_synthesis.json").read_text()) == saved
    assert [v["verdict"] for v in saved["verdicts"]] == ["holds", "does not hold"]
    assert saved["facts"] == {"seconds": 1.5}
    assert saved["files"] == ["02_noise_synthesis_norms.csv"]
    assert saved["config"]["profile"] == "laptop"
    assert (folder / saved["files"][0]).read_text() == "lambda,count\n0.1,2\n0.333333,3\n"
    assert list(record.summary().verdict) == ["holds", "does not hold"]


def test_summary_of_a_notebook_without_claims():
    assert list(Record("00_overview", resolve("smoke")).summary().columns)[:3] == ["claim", "part", "verdict"]


def test_figures_are_the_same_bytes_every_time(folders):
    contents = []
    for run in ("a", "b"):
        figure, ax = plt.subplots(figsize=(1, 1))
        ax.plot([0, 1], [1, 0])
        record = Record("00_overview", resolve("smoke", run))
        record.figure("line", figure, pd.DataFrame({"x": [0, 1]}))
        record.pictures("picture", figure)
        plt.close(figure)
        files = sorted((folders / "figures" / run).iterdir())
        contents.append([(f.name, f.read_bytes()) for f in files])
    assert contents[0] == contents[1]
    names = [name for name, _ in contents[0]]
    assert names == [f"00_overview_{n}" for n in ("line.csv", "line.pdf", "line.png", "picture.png")]


def test_a_folder_is_named_by_its_own_setting(tmp_path):
    given = {"data.root": str(tmp_path / "imagenet"), "data.a": str(tmp_path / "imagenet-a"), "models": "vit"}
    settings = resolve("imagenet", overrides=given | {"weights": "random"})
    assert without_paths(f"no folder {tmp_path}/imagenet-a", settings) == "no folder <data.a>"


def test_a_folder_is_found_in_whatever_letters_and_as_a_whole(tmp_path):
    home = tmp_path / "Bücher"
    settings = resolve("imagenet", overrides={"data.root": str(home), "weights": "random", "models": "vit"})
    record = Record("06_robustness", settings)
    record.save(missing={"sketch": f"no folder {home}/sketch", "a": f"no folder {home}-a", "r": [f"no folder {home}s"]})
    told = json.loads((record.folder / "records" / "06_robustness.json").read_text())["facts"]["missing"]
    assert told["sketch"] == "no folder <data.root>/sketch"
    assert (told["a"], told["r"]) == (f"no folder {home}-a", [f"no folder {home}s"])


def test_a_relative_folder_does_not_take_words_away():
    settings = resolve("imagenet", overrides={"data.root": "imagenet", "weights": "random", "models": "vit"})
    assert without_paths('{"profile": "imagenet"}', settings) == '{"profile": "imagenet"}'


def test_a_record_names_no_folder_of_this_machine(tmp_path):
    given = {"data.root": str(tmp_path / "images"), "weights": "random", "models": "vit"}
    record = Record("06_robustness", resolve("imagenet", overrides=given))
    why = f"no folder {tmp_path}/images/sketch: expected"
    record.table("columns", pd.DataFrame([{"column": "sketch", "missing": why}]))
    record.save(missing={"sketch": why})
    for file in ("records/06_robustness.json", "06_robustness_columns.csv"):
        text = (record.folder / file).read_text()
        assert str(tmp_path) not in text
        assert "no folder <data.root>/sketch: expected" in text
