"""Records read back: what is missing, mixed, damaged or no longer asked for is told, and never blended."""

import json
import math
import shutil

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from conftest import ROOT

import nslib.runtime
from nslib import palette, plots
from nslib.intervals import Estimate, t_estimate
from nslib.notebooks import read_cells
from nslib.profiles import PROFILES, resolve
from nslib.report import gather as module
from nslib.report.claims import read_claims
from nslib.report.conditions import setting_differences, version_groups
from nslib.report.gather import (
    NOT_RUN,
    VERDICTS,
    all_claims,
    claims_of,
    figure_folders,
    gather,
    gather_all,
    recorded_runs,
)
from nslib.report.record import Record
from nslib.reproduce import _key, _records_read
from nslib.runtime import run_record, to_json

RUN = "trial"


def leave(notebook: str, *verdicts, run=RUN, profile="laptop", overrides=None, table=True, **facts) -> Record:
    """A record as a notebook leaves it; verdicts are claim, part and the estimates."""
    record = Record(notebook, resolve(profile, run, overrides))
    for claim, part, estimates in verdicts:
        record.judge(claim, part, estimates)
    if table:
        record.table("numbers", pd.DataFrame({"x": [1, 2]}))
    record.save(**facts)
    return record


def match(value: float) -> tuple:
    return "C4", "match", Estimate(value, value - 0.01, value + 0.01, 200, seeds=3)


def of_version(monkeypatch, commit: str) -> None:
    monkeypatch.setattr(nslib.runtime, "commit", lambda: commit)


# One run


def test_a_record_is_read_as_it_was_left():
    record = leave("02_noise_synthesis", match(0.985), ("C4", "gap", []), images=7)
    (stored,) = gather(RUN).records
    assert (stored.name, stored.notebook, stored.by_command) == ("02_noise_synthesis", "02_noise_synthesis", False)
    assert list(stored.verdicts) == record.verdicts
    assert stored.files == ("02_noise_synthesis_numbers.csv",)
    assert stored.facts == {"images": 7}
    assert stored.minutes >= 0
    assert stored.config["profile"] == "laptop"
    assert {"nslib", "torch", "timm", "commit"} <= stored.versions.keys()


def test_of_several_with_names_the_one_that_decided_is_read():
    estimates = {"λ = 1": Estimate.exact(0.99, 9), "λ = 2": Estimate.exact(0.97, 9)}
    leave("02_noise_synthesis", ("C4", "match", estimates))
    run = gather(RUN)
    assert run.outdated == ()
    (row,) = (r for r in claims_of(run).itertuples() if (r.claim, r.part) == ("C4", "match"))
    assert (row.of, row.value) == ("λ = 2", 0.97)


def test_notebooks_without_a_record_are_missing():
    leave("02_noise_synthesis")
    run = gather(RUN)
    assert "02_noise_synthesis" not in run.missing
    assert {"01_patch_nullspace", "12_claims", "13_fingerprint"} <= set(run.missing)
    assert set(run.missing) < set(run.titles)
    assert run.titles["01_patch_nullspace"] == "01 · The nullspace of the patch embedding"


def test_only_files_directly_in_records_count():
    folder = leave("02_noise_synthesis").folder / "records"
    (folder / "rows").mkdir()
    (folder / "rows" / "half.json").write_text("{")
    assert [r.name for r in gather(RUN).records] == ["02_noise_synthesis"]


def test_a_commands_record_goes_with_the_notebook_whose_name_it_bears():
    folder = leave("06_robustness").folder
    for name in ("06_robustness_deit", "loose"):
        (folder / f"{name}.evaluation.json").write_text(to_json(run_record(resolve("imagenet"), against="")))
    records = {r.name: r for r in gather(RUN).records}
    assert records["06_robustness_deit"].by_command
    assert records["06_robustness_deit"].notebook == "06_robustness"
    assert records["06_robustness_deit"].files == ("06_robustness_deit.csv",)
    assert records["06_robustness_deit"].verdicts == ()
    assert records["loose"].notebook == "loose"
    assert gather(RUN).strangers == ()


def test_a_commands_record_of_a_notebooks_own_name_stands_beside_that_of_the_notebook():
    folder = leave("02_noise_synthesis", match(0.985)).folder
    (folder / "02_noise_synthesis.evaluation.json").write_text(to_json(run_record(resolve("imagenet"), against="")))
    run = gather(RUN)
    assert [(r.name, r.notebook) for r in run.records] == [
        ("02_noise_synthesis", "02_noise_synthesis"),
        ("02_noise_synthesis.evaluation", "02_noise_synthesis"),
    ]
    told = claims_of(run).set_index(["claim", "part"]).verdict
    assert told["C4", "match"] == "holds"


def test_a_file_that_two_records_list_and_one_that_is_gone_are_told():
    folder = leave("06_robustness").folder
    record = to_json(run_record(resolve("imagenet")))
    (folder / "06_robustness_numbers.evaluation.json").write_text(record)
    assert gather(RUN).contested == {"06_robustness_numbers.csv": ("06_robustness", "06_robustness_numbers")}
    assert gather(RUN).absent == ()
    (folder / "06_robustness_numbers.csv").unlink()
    assert gather(RUN).absent == ("06_robustness_numbers.csv",)


def test_a_file_that_its_record_did_not_leave_is_told():
    record = leave("02_noise_synthesis")
    figure = plt.figure()
    drawn = Record("09_watermark", resolve("laptop", RUN))
    drawn.figure("figure6", figure, None)
    plt.close(figure)
    drawn.save()
    assert gather(RUN).altered == ()
    for file in ("02_noise_synthesis_numbers.csv", "09_watermark_figure6.png", "09_watermark_figure6.pdf"):
        path = record.folder / file
        was = path.read_bytes()
        path.write_bytes(was + b" ")
        assert gather(RUN).altered == (file,)
        path.unlink()
        told = () if path.suffix == ".pdf" else (file,)  # earlier records have PDFs of pictures beside the PNG
        assert (gather(RUN).altered, gather(RUN).absent) == ((), told)
        path.write_bytes(was)


def test_of_an_older_record_and_a_contested_file_nothing_is_said():
    folder = leave("06_robustness").folder
    (folder / "06_robustness_numbers.csv").write_text("x\n3\n")
    assert gather(RUN).altered == ("06_robustness_numbers.csv",)
    (folder / "06_robustness_numbers.evaluation.json").write_text(to_json(run_record(resolve("imagenet"))))
    assert gather(RUN).altered == ()
    (folder / "06_robustness_numbers.evaluation.json").unlink()
    path = folder / "records" / "06_robustness.json"
    older = json.loads(path.read_text())
    del older["hashes"]
    path.write_text(to_json(older))
    assert gather(RUN).altered == ()


def test_a_notebook_that_is_gone_counts_nowhere():
    leave("02_noise", match(0.99))
    run = gather(RUN)
    assert run.strangers == ("02_noise",)
    assert set(claims_of(run).verdict) == {NOT_RUN}
    assert run.outdated == ()


def test_verdicts_by_a_rule_that_has_changed_are_told(monkeypatch):
    leave("02_noise_synthesis", match(0.985), ("C6", "norm", Estimate.exact(1.0, 10)))
    assert gather(RUN).outdated == ()
    rules = read_claims()
    rules.loc[rules.part == "match", "threshold"] = 0.97
    for place in ("nslib.report.gather.read_claims", "nslib.report.claims.read_claims"):
        monkeypatch.setattr(place, lambda: rules)
    assert gather(RUN).outdated == ("C4.match",)  # it would hold by either rule, but it was judged by the other


@pytest.mark.parametrize("verdict", ["holds", "does not hold"])
def test_a_rule_that_now_asks_for_an_interval_stops_no_report(monkeypatch, verdict):
    path = leave("02_noise_synthesis", match(0.985)).folder / "records" / "02_noise_synthesis.json"
    record = json.loads(path.read_text())
    record["verdicts"][0] |= {"low": None, "high": None, "verdict": verdict}
    path.write_text(json.dumps(record))
    rules = read_claims()
    rules.loc[rules.part == "match", "bound"] = "low"
    for place in ("nslib.report.gather.read_claims", "nslib.report.claims.read_claims"):
        monkeypatch.setattr(place, lambda: rules)
    assert gather(RUN).outdated == ("C4.match",)


def test_a_rule_that_has_changed_leaves_what_was_never_judged_as_it_is(monkeypatch):
    leave("02_noise_synthesis", ("C4", "match", []), ("C6", "norm", Estimate.exact(1.0, 10)))
    rules = read_claims()
    rules["statistic"] += ", in other words"
    for place in ("nslib.report.gather.read_claims", "nslib.report.claims.read_claims"):
        monkeypatch.setattr(place, lambda: rules)
    assert gather(RUN).outdated == ("C6.norm",)


def test_verdict_that_does_not_follow_from_its_number_is_told():
    path = leave("02_noise_synthesis", match(0.985)).folder / "records" / "02_noise_synthesis.json"
    path.write_text(path.read_text().replace('"holds"', '"does not hold"'))
    assert gather(RUN).outdated == ("C4.match",)


@pytest.mark.parametrize(("value", "told"), [(0.1, "not shown"), (-0.1, "does not hold")])
def test_records_from_before_what_is_not_shown_was_told_apart(value, told):
    gain = Estimate(value, value - 0.15, value + 0.05, 100, 3)
    record = leave("05_finetuning", ("C10", "rise", gain), profile="full").folder / "records" / "05_finetuning.json"
    record.write_text(record.read_text().replace('"not shown"', '"does not hold"'))
    (verdict,) = gather(RUN).records[0].verdicts
    assert (verdict.verdict, verdict.value) == (told, value)
    assert gather(RUN).outdated == ()


def test_the_notebook_of_all_claims_tells_what_is_outdated_and_goes_on():
    path = leave("02_noise_synthesis", match(0.985), ("C6", "norm", Estimate.exact(1.0, 10))).folder / "records"
    path /= "02_noise_synthesis.json"
    path.write_text(path.read_text().replace('"holds"', '"does not hold"'))
    leave("05_finetuning", ("C18", "share", t_estimate([0.3])))  # one seed: no interval
    code = (ROOT / "paper_nb" / "12_claims.py").read_text()
    exec(compile(code, "12_claims.py", "exec"), cells := {})
    plt.close("all")
    assert cells["overview"].set_index("run").loc[RUN, "no longer by the rule"] == "C4.match, C6.norm"
    assert cells["table"].loc["C4 match", [RUN, "notebook", "cell"]].tolist() == [
        "does not hold",
        "02_noise_synthesis",
        "Verdicts",
    ]
    assert (gather("smoke").folder / "records" / "12_claims.json").is_file()


def test_the_notebook_of_all_claims_counts_its_own_record_in_no_run(monkeypatch):
    """So that every folder gets the same tables, in whatever order they are made.

    Runs of the checkout are left out: a user may have made smoke there.
    """
    monkeypatch.setattr(module, "figure_folders", lambda: figure_folders()[:1])
    code = compile((ROOT / "paper_nb" / "12_claims.py").read_text(), "12_claims.py", "exec")
    for run in (RUN, "other"):
        leave("02_noise_synthesis", match(0.985), run=run)
    of_version(monkeypatch, "later")
    for run in (RUN, "other", "alone"):
        leave("12_claims", run=run, overrides={"images": 7})
    tables = []
    for _ in range(2):
        exec(code, cells := {})
        tables.append(cells["overview"])
    plt.close("all")
    assert tables[0].equals(tables[1])
    assert tables[0].set_index("run").loc[[RUN, "other"], ["records", "versions"]].to_numpy().tolist() == [[1, 1]] * 2
    assert not tables[0].run.isin(["alone", "smoke"]).any()


def test_an_estimate_without_an_interval_is_kept_as_such():
    left = leave("05_finetuning", ("C18", "share", t_estimate([0.3])), profile="full")
    record = left.folder / "records" / "05_finetuning.json"
    (verdict,) = json.loads(record.read_text(), parse_constant=pytest.fail)["verdicts"]  # NaN is no JSON
    assert (verdict["value"], verdict["low"], verdict["high"]) == (0.3, None, None)
    assert gather(RUN).outdated == ()
    row = claims_of(gather(RUN)).set_index(["claim", "part"]).loc["C18", "share"]
    assert (row.verdict, row.value) == ("does not hold", 0.3)
    assert math.isnan(row.low)


def test_verdict_in_a_notebook_that_is_not_asked_for_it_is_told():
    leave("03_approximate_nullspace", match(0.985))
    assert gather(RUN).outdated == ("C4.match",)
    assert set(claims_of(gather(RUN)).verdict) == {NOT_RUN}


# Conditions


def test_records_of_one_version_are_one_group(monkeypatch):
    of_version(monkeypatch, "aaa")
    leave("01_patch_nullspace")
    leave("02_noise_synthesis")
    (group,) = gather(RUN).groups
    assert (group.label, group.records) == ("v1", ("01_patch_nullspace", "02_noise_synthesis"))
    assert gather(RUN).differences == ()


def test_mixed_versions_are_kept_apart(monkeypatch):
    for commit, notebook in (("aaa", "01_patch_nullspace"), ("bbb", "02_noise_synthesis"), ("aaa", "04_closure")):
        of_version(monkeypatch, commit)
        leave(notebook, *([match(0.99)] if notebook.startswith("02") else []))
    first, second = gather(RUN).groups
    assert (first.label, first.records, first.versions["commit"]) == ("v1", ("01_patch_nullspace", "04_closure"), "aaa")
    assert (second.label, second.records, second.versions["commit"]) == ("v2", ("02_noise_synthesis",), "bbb")
    table = claims_of(gather(RUN))
    assert set(table[table.verdict == "holds"].versions) == {"v2"}
    assert set(table[table.verdict == NOT_RUN].versions) == {""}


def test_a_package_is_a_version_too():
    groups = version_groups({"a": {"torch": "2.9"}, "b": {"torch": "2.15"}, "c": {"torch": "2.9"}})
    assert [g.records for g in groups] == [("a", "c"), ("b",)]


def test_settings_that_differ_are_told_with_their_records():
    leave("01_patch_nullspace")
    leave("02_noise_synthesis", overrides={"synthesis.noise.steps": 7})
    (difference,) = gather(RUN).differences
    assert difference.name == "synthesis.noise.steps"
    assert difference.values == (("120", ("01_patch_nullspace",)), ("7", ("02_noise_synthesis",)))


def test_settings_that_older_records_lack_are_told_by_section():
    configs = {
        "old": {"images": 5},
        "new": {"images": 5, "suite": {"batch": 1, "seed": 0}, "device": "cpu"},
        "newer": {"images": 6, "suite": {"batch": 1, "seed": 0}, "device": "cpu"},
    }
    differences = setting_differences(configs)
    assert [(d.name, d.values) for d in differences] == [
        ("images", (("5", ("old", "new")), ("6", ("newer",)))),
        ("device", ((None, ("old",)),)),
        ("suite.* (2 settings)", ((None, ("old",)),)),
    ]


# Damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: "{", "cannot be read as a record"),
        (lambda r: "[]", "cannot be read as a record"),
        (lambda r: "\x00", "cannot be read as a record"),
        (lambda r: to_json({k: v for k, v in r.items() if k != "verdicts"}), "is no whole record, it lacks 'verdicts'"),
        (lambda r: to_json({k: v for k, v in r.items() if k != "notebook"}), "is no whole record, it lacks 'notebook'"),
        (lambda r: to_json(r | {"notebook": "04_closure"}), r"\(it is the record of 04_closure\)"),
        (lambda r: to_json(r | {"minutes": "soon"}), "cannot be read as a record"),
        (lambda r: to_json(r | {"verdicts": [{"claim": "C4"}]}), "cannot be read as a record"),
        (
            lambda r: to_json(r | {"verdicts": [r["verdicts"][0] | {"verdict": "perhaps"}]}),
            "verdict must be one of holds, not shown, does not hold, not testable, not run, got perhaps",
        ),
    ],
)
def test_damaged_record_is_named(damage, message):
    path = leave("02_noise_synthesis", match(0.99)).folder / "records" / "02_noise_synthesis.json"
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=rf"records/02_noise_synthesis\.json.*{message}.*: run its notebook again"):
        gather(RUN)


def test_a_run_without_records_names_folder_and_remedy():
    with pytest.raises(FileNotFoundError, match=r"trial/records: run `make reproduce` first, .* that there is: none"):
        gather(RUN)
    leave("02_noise_synthesis", run="other")
    with pytest.raises(FileNotFoundError, match="name a run that there is: other"):
        gather(RUN)


# All runs


def test_claims_are_those_of_the_table_in_its_order():
    leave("02_noise_synthesis", match(0.985), ("C4", "gap", Estimate(0.002, 0.001, 0.003, 200)))
    leave("06_robustness", ("C11", "base", []))
    table = claims_of(gather(RUN))
    claims = read_claims()
    assert list(zip(table.claim, table.part, strict=True)) == list(zip(claims.claim, claims.part, strict=True))
    by_part = table.set_index(["claim", "part"])
    told = by_part.loc[("C4", "match")]
    assert (told.verdict, told.value, told.low, told.high, told.n, told.seeds) == ("holds", 0.985, 0.975, 0.995, 200, 3)
    assert (told.profile, told.rule) == (RUN, "value >= 0.98")
    assert told["testable at"] == "laptop full gpu imagenet imagenet_small"
    assert by_part.loc[("C4", "gap")].verdict == "does not hold"
    assert by_part.loc[("C11", "base")].verdict == "not testable"
    left = by_part.loc[("C3", "heads")]
    assert (left.verdict, left.rule, left.n) == (NOT_RUN, "value <= 1e-12", 0)
    assert math.isnan(left.value)


def test_all_runs_in_the_order_of_the_profiles(tmp_path):
    for name, profile in (("b", "imagenet"), ("z", "smoke"), ("a", "imagenet"), ("y", "full")):
        leave("02_noise_synthesis", run=name, profile=profile)
    runs = gather_all(figure_folders()[0])
    assert [r.run_name for r in runs] == ["z", "y", "a", "b"]
    table = all_claims(runs)
    assert list(dict.fromkeys(table.profile)) == ["z", "y", "a", "b"]
    assert len(table) == 4 * len(read_claims())


def test_without_any_run_every_claim_is_not_run(tmp_path):
    assert gather_all(tmp_path) == []
    table = all_claims([])
    assert set(table.verdict) == {NOT_RUN}
    assert len(table) == len(read_claims())
    assert set(table["testable at"].str.split().explode()) == set(PROFILES)


def test_runs_of_one_name_in_two_folders_are_not_blended(tmp_path):
    leave("02_noise_synthesis", match(0.99))
    leave("01_patch_nullspace", run="elsewhere")
    own = figure_folders()[0]
    shutil.copytree(own, tmp_path / "copy")
    shutil.rmtree(own / "elsewhere")
    leave("02_noise_synthesis", match(0.97))
    trial, elsewhere = sorted(gather_all(own, tmp_path / "copy"), key=lambda run: run.run_name, reverse=True)
    assert (trial.folder.parent, elsewhere.folder.parent) == (own, tmp_path / "copy")
    assert [v.verdict for v in trial.records[0].verdicts] == ["does not hold"]


def test_figures_of_the_checkout_are_read_beside_those_of_the_environment(folders, monkeypatch, tmp_path):
    (tmp_path / "paper_nb").mkdir()
    monkeypatch.setattr(module, "checkout", lambda: tmp_path)
    assert figure_folders() == (folders / "figures", tmp_path / "figures")
    monkeypatch.setenv("NSLIB_FIGURES", str(tmp_path / "figures"))
    assert figure_folders() == (tmp_path / "figures",)
    monkeypatch.setattr(module, "checkout", lambda: None)
    assert figure_folders() == (tmp_path / "figures",)
    assert set(module.notebook_titles()) == set(read_claims().notebook)


def test_recorded_runs():
    assert recorded_runs() == []
    leave("02_noise_synthesis", run="b")
    leave("02_noise_synthesis", run="a")
    assert recorded_runs() == ["a", "b"]


def test_the_notebook_of_all_claims_runs_again_when_a_record_before_it_changes(folders):
    """A result that reads records depends on them; one that does not, on none."""
    for notebook in ("02_noise_synthesis", "12_claims", "13_fingerprint"):
        leave(notebook)
    notebooks = ROOT / "paper_nb"

    def read(name):
        return _records_read(notebooks / name, read_cells(notebooks / name))

    own = [p.stem for p in read("12_claims.ipynb") if folders in p.parents]
    assert own == ["02_noise_synthesis", "13_fingerprint"]
    assert read("13_fingerprint.ipynb") == []
    keys = [_key(notebooks / "12_claims.ipynb", {}, "")]
    leave("02_noise_synthesis", changed=True)
    keys.append(_key(notebooks / "12_claims.ipynb", {}, ""))
    leave("12_claims", changed=True)  # its own
    keys.append(_key(notebooks / "12_claims.ipynb", {}, ""))
    leave("13_fingerprint", changed=True)
    keys.append(_key(notebooks / "12_claims.ipynb", {}, ""))
    assert keys[0] != keys[1] == keys[2] != keys[3]


def test_every_verdict_has_a_mark_of_its_own():
    assert tuple(palette.VERDICTS) == VERDICTS
    assert len({marker for marker, _ in palette.VERDICTS.values()}) == len(VERDICTS)
    figure, ax = plt.subplots()
    table = pd.DataFrame({"laptop": ["holds", "not run"], "full": ["does not hold", "holds"]}, index=["C1 a", "C2 b"])
    plots.verdict_grid(table, ax)
    placed = {c.get_label(): sorted(map(tuple, c.get_offsets().tolist())) for c in ax.collections}
    assert placed == {
        "holds": [(0.0, 0.0), (1.0, 1.0)],
        "not shown": [],
        "does not hold": [(0.0, 1.0)],
        "not testable": [],
        "not run": [(1.0, 0.0)],
    }
    assert [t.get_text() for t in ax.get_xticklabels()] == ["C1 a", "C2 b"]
    plt.close(figure)
