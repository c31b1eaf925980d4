"""The page of a run: one file that needs nothing else, says what is missing or mixed, and shows text as text."""

import base64
import logging
import os
import re
import sys
from html.parser import HTMLParser
from io import BytesIO

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

import nslib.runtime
from nslib.cli import main
from nslib.intervals import Estimate
from nslib.profiles import resolve
from nslib.report import executed
from nslib.report import page as page_module
from nslib.report.cells import number, read_cells
from nslib.report.claims import read_claims
from nslib.report.gather import gather
from nslib.report.notes import notes_of
from nslib.report.page import PRINTED, render, write_page
from nslib.report.record import Record
from nslib.report.reference import printed
from nslib.reproduce import DONE, Outcome
from nslib.runtime import run_record, to_json

RUN = "trial"
ARXIV = "https://arxiv.org/abs/2403.10476"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """What a reader sees and where links lead; every tag must be closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.words, self._open = [], [], []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag not in ("span", "code", "a", "strong"):  # a line or a cell of its own
            self.words.append(" ")

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(autouse=True)
def runs(monkeypatch, tmp_path):
    """Executed notebooks of this test alone."""
    monkeypatch.setattr(executed, "runs_path", lambda name: tmp_path / "runs" / name)
    return tmp_path / "runs"


def leave(notebook: str, *verdicts, tables=None, figures=None, profile="laptop", run=RUN, **facts) -> Record:
    """A record as a notebook leaves it; figures take the table drawn, or None."""
    record = Record(notebook, resolve(profile, run))
    for verdict in verdicts:
        record.judge(*verdict)
    for name, table in (tables or {}).items():
        record.table(name, pd.DataFrame(table))
    for name, table in (figures or {}).items():
        figure, ax = plt.subplots(figsize=(1, 1))
        ax.plot([0, 1])
        record.figure(name, figure, None if table is None else pd.DataFrame(table))
        plt.close(figure)
    record.save(**facts)
    return record


def leave_all() -> None:
    leave("01_patch_nullspace", ("C2", "tokens", Estimate.exact(1e-12, 64)), figures={"amplitude": {"x": [0.5]}})
    leave("02_noise_synthesis", ("C4", "match", Estimate(0.97, 0.9612345, 0.98, 200, 2)), tables={"n": {"x": [1 / 3]}})
    leave("06_robustness", ("C11", "base", []))


def shown(run=RUN, links=None) -> Page:
    return Page(render(gather(run), links or {}))


def rows_of_claims(page: Page) -> list[str]:
    """One string a line of the verdict table."""
    text = page.text.split("judged in ")[1].split(" The rules were written down")[0]
    return re.split(r" (?=C\d+ [a-z]+ ?[✓≈✗○–] )", text)


# One file


def test_a_large_picture_is_made_small_and_stays_what_it_shows(tmp_path):
    noisy = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8).repeat(32, 0).repeat(32, 1)
    noisy = noisy ^ np.random.default_rng(1).integers(0, 16, noisy.shape, dtype=np.uint8)
    Image.fromarray(noisy).save(path := tmp_path / "large.png")
    kind, _, data = page_module._data_uri(path).partition(",")
    assert kind == "data:image/webp;base64"
    assert len(data) < path.stat().st_size / 2
    with Image.open(BytesIO(base64.b64decode(data))) as seen:
        assert np.abs(np.asarray(seen, dtype=float) - noisy).mean() < 16


def test_a_picture_that_is_not_large_is_shown_as_it_is(tmp_path):
    drawn = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(drawn).save(path := tmp_path / "small.png")
    with Image.open(BytesIO(base64.b64decode(page_module._data_uri(path).partition(",")[2]))) as seen:
        assert np.array_equal(np.asarray(seen), drawn)


def test_page_needs_no_other_file_and_no_network():
    leave_all()
    html = render(gather(RUN), {"02_noise_synthesis": "../../runs/trial/02_noise_synthesis.html"})
    page = Page(html)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    sources = [attrs["src"] for _, attrs in page.tags if "src" in attrs]
    assert sources
    assert all(s.startswith("data:image/webp;base64,") for s in sources)
    addresses = {attrs["href"] for _, attrs in page.tags if "href" in attrs}
    assert {a for a in addresses if "//" in a} == {ARXIV}
    assert re.findall(r"https?:[^\"'<\s]+", html) == [ARXIV]
    assert not re.search(r"@import|url\(", html)


def test_every_link_leads_somewhere():
    leave_all()
    page = shown()
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    folder = gather(RUN).folder
    for attrs in page.all("a"):
        address = attrs["href"]
        if address.startswith("#"):
            assert address[1:] in ids
        elif address != ARXIV:
            assert (folder / address).is_file()


def test_page_can_be_read_aloud():
    leave_all()
    page = shown()
    assert page.all("html") == [{"lang": "en"}]
    assert [attrs["alt"] for attrs in page.all("img")] == [
        "01 · The nullspace of the patch embedding: figure amplitude"
    ]
    assert all(attrs["scope"] in ("col", "row") for attrs in page.all("th"))
    regions = [attrs for attrs in page.all("div") if attrs.get("class") == "scroll"]
    assert len(regions) == len(page.all("table"))  # each table scrolls in a box of its own, also by keyboard
    assert all(attrs["aria-label"] and attrs["tabindex"] == "0" for attrs in regions)
    assert {"width=device-width, initial-scale=1"} <= {attrs.get("content") for attrs in page.all("meta")}


def test_page_is_the_same_bytes_every_time():
    leave_all()
    pages = [write_page(RUN).read_bytes() for _ in range(2)]
    assert pages[0] == pages[1]
    assert gather(RUN).folder / "index.html" == write_page(RUN)


@pytest.mark.parametrize("run", ["laptop", "imagenet-mini"])
def test_page_of_the_committed_results_is_below_6_mb(run):
    html = render(gather(run, ROOT / "figures"), {})
    Page(html)
    assert len(html.encode()) < 6_000_000
    assert re.findall(r"https?:[^\"'<\s]+", html) == [ARXIV]


# Verdicts


def test_verdicts_come_first_in_the_order_of_the_claims():
    leave_all()
    page = shown()
    lines = rows_of_claims(page)
    claims = read_claims()
    assert len(lines) == len(claims)
    assert [line.split()[0] for line in lines] == list(claims.claim)
    told = {tuple(line.split()[:2]): line for line in lines}
    what = {(c.claim, c.part): c.statistic for c in claims.itertuples()}
    assert f"✓ holds 1e-12 64 1 {what['C2', 'tokens']}: value <= 1e-09 01" in told["C2", "tokens"]
    assert f"✗ does not hold 0.97 [0.9612, 0.98] 200 2 {what['C4', 'match']}: value >= 0.98 02" in told["C4", "match"]
    assert "Testable at: full, gpu, imagenet. rule changed since" in told["C11", "base"]
    assert f"○ not testable {what['C11', 'base']}: low > 0 06" in told["C11", "base"]
    (changed,) = claims.changed[(claims.claim == "C16")]
    assert f"rule changed since {changed}." in told["C16", "convex"]
    assert "rule changed" not in told["C2", "tokens"]
    assert f"– not run {what['C3', 'heads']}: value <= 1e-12 01b" in told["C3", "heads"]
    assert page.text.index("Claims and verdicts") < page.text.index("00 · What a nullspace is")
    assert page.text.index("13 · The nullspace as a fingerprint") < page.text.rindex("How it was made")


def test_a_listed_profile_whose_settings_do_not_test_a_claim_is_told():
    leave("06_robustness", ("C11", "base", []), profile="full")
    told = {tuple(line.split()[:2]): line for line in rows_of_claims(shown())}
    at = "Testable at: full, gpu, imagenet"
    assert f"{at}, but not with the settings or data of this run. rule changed since" in told["C11", "base"]
    assert f"{at}. rule changed since" in told["C10", "rise"]


def test_the_one_that_decided_is_named_below_its_value():
    columns = {"clean": Estimate(2, 1, 3, 4000), "cw": Estimate(0.2, -5, 5, 200)}
    leave("06_robustness", ("C11", "base", columns), profile="full")
    (line,) = (line for line in rows_of_claims(shown()) if line.startswith("C11 base"))
    assert "≈ not shown 0.2 [-5, 5] cw 200 1" in line


@pytest.mark.parametrize(
    ("gain", "told"),
    [
        (Estimate(-0.0122, -0.521, 0.496, 24000, 3), "not shown (-0.01 points, 95 % interval -0.52 to 0.50)"),
        (Estimate(-0.3, -0.4, -0.2, 24000, 1), "does not hold (-0.30 points, 95 % interval -0.40 to -0.20)"),
    ],
)
def test_the_question_of_the_paper_is_answered_first(gain, told):
    leave("06_robustness", ("C11", "plain", [gain]), ("C11", "base", []), profile="full")
    answer = shown().text.split("Claims and verdicts")[0]
    assert f"in the mean of Table 2: {told}. Every column better than before finetuning: not testable" in answer


def test_how_it_was_made():
    leave("02_noise_synthesis", ("C4", "match", Estimate(0.97, 0.96, 0.98, 200, 2)), seconds=1.5)
    text = shown().text.split("How it was made")[-1]
    stored = gather(RUN).records[0]
    for told in (stored.made, stored.versions["torch"], stored.versions["commit"], "seed 0; verdicts over 2", "no GPU"):
        assert told in text
    assert '"seconds": 1.5' in text
    assert '"run_name": "trial"' in text


# What is missing or mixed


def test_missing_notebooks_are_shown_as_such():
    leave("02_noise_synthesis")
    page = shown()
    run = gather(RUN)
    assert f"{len(run.missing)} of {len(run.titles)} notebooks have left no record in this run:" in page.text
    assert page.text.count("No record of this notebook in this run.") == len(run.missing)
    assert "04 · Is the ε-approximate nullspace closed? 04_closure No record" in page.text


def test_records_of_one_version_are_not_labelled():
    leave("02_noise_synthesis", ("C4", "match", Estimate(0.97, 0.96, 0.98, 200)))
    text = shown().text
    assert "different versions" not in text
    assert "✗ does not hold 1 – not run" in text  # counted together


def test_mixed_versions_are_shown_and_not_blended(monkeypatch):
    for commit, notebook, part, value in (("aaa", "02_noise_synthesis", "match", 0.99), ("bbb", "03_x", None, 0)):
        monkeypatch.setattr(nslib.runtime, "commit", lambda commit=commit: commit)
        leave(notebook, *([("C4", part, Estimate(value, value, value, 9))] if part else []))
    monkeypatch.setattr(nslib.runtime, "commit", lambda: "ccc")
    leave("04_closure", ("C16", "convex", Estimate.exact(0.01, 9)))
    page = shown()
    notice = page.text.split("How far these records belong together")[-1]
    assert "The records were made by 3 different versions:" in notice
    assert "v1 commit aaa 02_noise_synthesis holds: 1" in notice
    assert "v2 commit bbb 03_x none" in notice
    assert "v3 commit ccc 04_closure holds: 1" in notice
    assert "Records of notebooks that are no longer there: 03_x." in notice
    told = {tuple(line.split()[:2]): line for line in rows_of_claims(page)}
    assert "holds v1" in told["C4", "match"]
    assert "holds v3" in told["C16", "convex"]
    assert 'class="counts"' not in render(gather(RUN), {})  # no sum over versions


def test_the_verdicts_come_first_and_point_to_what_is_mixed():
    leave("02_noise_synthesis")
    text = shown().text
    assert text.index("Claims and verdicts") < text.index("is told below the table") < text.index("in our words")
    assert text.index("in our words") < text.index("have left no record in this run:")


def test_kept_results_of_other_commits_are_told(monkeypatch):
    monkeypatch.setattr(nslib.runtime, "commit", lambda: "ccc")
    leave("06_robustness", jobs=[{"job": name, "commit": name[:3]} for name in ("aaa_1", "aaa_2", "bbb", "ccc")])
    leave("08_epsilon_ablation", jobs=[{"job": "aaa_1", "commit": "aaa"}])
    leave("11_controls", jobs=[{"job": "aaa_2", "commit": "aaa"}])
    assert gather(RUN).kept == {
        ("06_robustness",): ("aaa", "bbb"),
        ("08_epsilon_ablation", "11_controls"): ("aaa",),
    }
    assert "aaa, bbb in 06_robustness; aaa in 08_epsilon_ablation, 11_controls." in shown().text


def test_settings_that_differ_are_shown():
    leave("02_noise_synthesis")
    leave("04_closure", profile="smoke")
    text = shown().text
    assert "settings or groups of settings are not the same in all records" in text
    assert 'profile "laptop" 02_noise_synthesis profile "smoke" 04_closure' in text


def test_a_table_that_a_command_wrote_over_is_shown_once_as_the_commands():
    folder = leave("06_robustness", tables={"columns": {"top1": [50]}, "strength": {"top1": [1]}}).folder
    (folder / "06_robustness_columns.evaluation.json").write_text(to_json(run_record(resolve("imagenet"))))
    (folder / "06_robustness_columns.csv").write_text("top1\n77\n")
    text = shown().text
    assert "06_robustness_columns.csv is listed by 2 records" in text
    assert text.count("columns by a command, record 06_robustness_columns") == 1
    assert "top1 77" in text
    assert text.count("csv") - text.count(".csv") == 2  # a link for each of the two tables


def test_what_a_command_left_stands_under_no_heading_of_the_notebook():
    folder = leave("06_robustness", tables={"strength": {"top1": [1]}}).folder
    (folder / "06_robustness_deit.evaluation.json").write_text(to_json(run_record(resolve("imagenet"))))
    (folder / "06_robustness_deit.csv").write_text("top1\n78\n")
    text = shown().text
    assert text.index("Strength Top-1 against") < text.index("By a command, or by the notebook as it was deit by a")


def test_only_listed_files_are_shown_and_lost_ones_are_told():
    folder = leave("02_noise_synthesis", tables={"norms": {"x": [1]}, "lost": {"x": [2]}}).folder
    (folder / "02_noise_synthesis_old.csv").write_text("stale\n12345\n")
    (folder / "02_noise_synthesis_lost.csv").unlink()
    text = shown().text
    assert "12345" not in text
    assert "Listed in a record, but not there: 02_noise_synthesis_lost.csv." in text
    assert "02_noise_synthesis_lost.csv is listed in the record, but it is not there." in text
    assert "Not the file that its record lists" not in text


def test_a_file_of_another_run_in_the_place_of_a_listed_one_is_told():
    folder = leave("02_noise_synthesis", figures={"norms": {"x": [1]}}).folder
    Image.new("RGB", (9, 9)).save(folder / "02_noise_synthesis_norms.png")
    told = "Not the file that its record lists, but of another run, or changed: 02_noise_synthesis_norms.png."
    assert told in shown().text


# Tables and figures


@pytest.mark.parametrize("notebook", PRINTED)
def test_the_papers_tables_stand_beside_ours(notebook):
    ours = {"model": ["ours, small"], "x": [0.123456]}
    leave(notebook, tables=dict.fromkeys(PRINTED[notebook], ours) | {"other": {"x": [1]}})
    text = shown().text
    assert "This run has no table" not in text
    for name, title in PRINTED[notebook].items():
        theirs = text.split(f"{name} csv Ours model x ours, small 0.1235 The paper's {title} ")[1]
        frame = printed(name)
        assert theirs.startswith(" ".join(frame.columns))
        assert str(frame.iloc[-1, 0]) in theirs


def test_the_papers_numbers_keep_their_order_where_ours_are_missing():
    leave("02_noise_synthesis", tables={"other": {"x": [1]}})
    text = shown().text
    assert text.count("This run has no table of that form.") == 2
    assert text.index("The paper's Figure 3a") < text.index("The paper's Figure 3b") < text.index("other csv")


def test_the_page_names_every_printed_table_and_figure_that_it_shows():
    leave("02_noise_synthesis")
    assert "the paper's Tables 1 to 5, and what can be read off its Figures 3 and 4, stand beside ours." in shown().text
    named = {title.split(",")[0] for tables in PRINTED.values() for title in tables.values()}
    assert named == {*(f"Table {i}" for i in range(1, 6)), "Figure 3a", "Figure 3b", "Figure 4"}
    assert {f"{n}.csv" for tables in PRINTED.values() for n in tables} | {"claims.csv"} == {
        p.name for p in (ROOT / "data" / "reference").iterdir()
    }


def test_a_printed_table_without_one_of_ours_stands_alone():
    leave("06_robustness", tables={"columns": {"x": [1]}})
    text = shown().text
    assert "The paper's Table 2, as printed" in text
    assert "This run has no table of that form." in text
    assert text.index("columns csv") < text.index("First the base model on all columns") < text.index("as printed")


def test_printed_rows_are_taken_out_of_our_table2():
    table = pd.concat([pd.DataFrame({"model": ["shapes_vit (ours)"], "clean": [95.7]}), printed("table2")])
    leave("06_robustness", tables={"table2": table})
    ours, paper = shown().text.split("table2 csv Ours")[1].split("The paper's Table 2, as printed")
    assert "shapes_vit (ours) 95.7" in ours
    assert "ViT-S" not in ours
    assert "ViT-S 74.19 0.68" in paper


def test_text_is_shown_as_text():
    nasty = '<script>alert("x")</script> & <b>'
    leave("02_noise_synthesis", tables={"norms": {nasty: [nasty], "x": [1]}}, why=nasty)
    html = render(gather(RUN), {})
    assert "<script" not in html
    assert "<b>" not in html
    text = Page(html).text
    assert f"{nasty} x {nasty} 1" in text


@pytest.mark.parametrize(("rows", "told"), [(30, None), (31, "31 rows"), (101, "101 rows, the first 100 here")])
def test_long_tables_are_folded_and_capped(rows, told):
    leave("03_approximate_nullspace", tables={"long": {"place": [f"row{i}" for i in range(rows)]}})
    page = shown()
    folded = [w for w in page.words if re.match(r"\d+ rows", w)]
    assert folded == ([told] if told else [])
    assert len(re.findall(r"row\d+", page.text)) == min(rows, 100)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0.98766", "0.9877"),
        ("12345.678", "12350"),
        ("123456789.0", "1.235e+08"),
        ("0.00001234567", "1.235e-05"),
        ("0.00012344", "0.0001234"),
        ("200.0", "200"),
        ("0.0", "0"),
        ("-0.5", "-0.5"),
        ("2048", "2048"),
        ("1234567890", "1234567890"),
        ("True", "True"),
        ("vit_tiny", "vit_tiny"),
        ("1_000.5", "1_000.5"),
        ("inf", "inf"),
        ("nan", "nan"),
        ("", ""),
        (None, ""),
        (float("nan"), ""),
        (0.97, "0.97"),
    ],
)
def test_numbers_have_four_significant_digits(value, text):
    assert number(value) == text


def test_columns_of_numbers_are_told_from_text(tmp_path):
    (tmp_path / "t.csv").write_text("model,top1,missing,n\nvit,0.5,,1\n,1e-7,no folder,\n")
    table = read_cells(tmp_path / "t.csv", most=1)
    assert table.numeric == (False, True, False, True)
    assert (table.rows, table.total) == ((("vit", "0.5", "", "1"),), 2)


@pytest.mark.parametrize("text", ["", "a,b\n1,2,3\n1\n1,2,3,4\n"])
def test_damaged_table_is_named(text):
    folder = leave("02_noise_synthesis", tables={"norms": {"x": [1]}}).folder
    (folder / "02_noise_synthesis_norms.csv").write_text(text)
    with pytest.raises(ValueError, match=r"02_noise_synthesis_norms\.csv cannot be read as a table .*: run its noteb"):
        render(gather(RUN), {})


# Executed notebooks


def execute(runs, name="02_noise_synthesis", heading="Verdicts"):
    """An executed notebook of its own, with a picture and a formula."""
    png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    cell = new_code_cell("1 + 1", execution_count=1)
    cell.outputs = [new_output("display_data", {"image/png": png, "text/plain": "a figure"})]
    folder = runs / RUN
    folder.mkdir(parents=True, exist_ok=True)
    notebook = new_notebook(cells=[new_markdown_cell(f"# Title\n$x^2$\n\n## {heading}"), cell])
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


def test_executed_notebooks_are_linked_where_they_are(runs):
    leave("02_noise_synthesis")
    leave("04_closure")
    assert "executed notebook" not in re.sub("Links to executed notebooks", "", shown().text)
    execute(runs)
    (runs / RUN / "04_closure.partial.ipynb").write_text("half of one")
    page = write_page(RUN)
    links = {a["href"] for a in Page(page.read_text()).all("a") if a["href"].endswith(".html")}
    assert len(links) == 1
    (address,) = links
    assert not os.path.isabs(address)
    assert (page.parent / address).resolve() == (runs / RUN / "02_noise_synthesis.html").resolve()
    assert (
        "02 · Noise that the encoder does not notice 02_noise_synthesis · executed notebook"
        in Page(page.read_text()).text
    )
    assert sorted(p.name for p in (runs / RUN).glob("*.html")) == ["02_noise_synthesis.html"]


def test_claims_lead_to_the_heading_of_their_cell(runs):
    leave("02_noise_synthesis", ("C4", "match", Estimate(0.97, 0.96, 0.98, 200)))
    execute(runs)
    page = Page(write_page(RUN).read_text())
    assert sum(a["href"].endswith("/02_noise_synthesis.html#Verdicts") for a in page.all("a")) == 4
    assert "02 · Verdicts" in page.text
    assert "01b · Verdicts" in page.text  # not executed: no link
    assert '<h2 id="Verdicts">' in (runs / RUN / "02_noise_synthesis.html").read_text()


def test_anchors_are_those_of_the_executed_page(runs):
    heading = "Norm: ‖v‖ against λ, 100 % (why?)"
    execute(runs, heading=heading)
    html = executed.executed_pages(RUN)["02_noise_synthesis"].read_text()
    assert f'<h2 id="{executed.heading_anchor(heading)}">' in html


def test_executed_page_loads_nothing_and_tells_no_machine(runs, recwarn, caplog, capsys):
    execute(runs)
    level = logging.getLogger("traitlets").level
    html = executed.executed_pages(RUN)["02_noise_synthesis"].read_text()
    assert logging.getLogger("traitlets").level == level
    assert "<script" not in html
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", html)
    assert not re.search(r"@import|url\(['\"]?(?!data:)", html)
    assert "data:image/png;base64," in html
    assert str(ROOT) not in html
    assert capsys.readouterr() == ("", "")


def test_links_of_an_executed_page_start_from_where_it_lies(runs):
    source = execute(runs)
    notebook = nbformat.read(source, as_version=4)
    notebook.cells[0].source += "\n[all of them](../figures/full/index.html)"
    nbformat.write(notebook, source)
    page = executed.executed_pages(RUN)["02_noise_synthesis"]
    (address,) = re.findall(r'href="([^#"]+)"', page.read_text())
    assert (page.parent / address).resolve() == ROOT / "figures" / "full" / "index.html"


def test_executed_page_is_made_anew_only_when_its_notebook_is_younger(runs):
    source = execute(runs)
    page = executed.executed_pages(RUN)["02_noise_synthesis"]
    first = page.read_text()
    page.write_text("kept")
    os.utime(source, (1, 1))
    executed.executed_pages(RUN)
    assert page.read_text() == "kept"
    os.utime(page, (0, 0))
    executed.executed_pages(RUN)
    assert page.read_text() == first


def test_damaged_executed_notebook_is_named(runs):
    path = execute(runs)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"02_noise_synthesis\.ipynb cannot be read as a notebook .*: run it again"):
        executed.executed_pages(RUN)


# The command


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run `nslib ...` in an empty folder: (exit code, output, errors)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["nslib", *arguments])
        return main(), *capsys.readouterr()

    return run


def test_report_writes_every_run_or_the_one_named(call):
    for run in ("a", "b"):
        leave("02_noise_synthesis", run=run)
    code, out, errors = call("report", "b")
    assert (code, errors) == (0, "")
    assert out.strip() == str(gather("b").folder / "index.html")
    assert not (gather("a").folder / "index.html").exists()
    assert call("report")[1].split() == [str(gather(run).folder / "index.html") for run in ("a", "b")]


def test_report_without_records_names_folder_and_remedy(call, folders):
    code, _, errors = call("report")
    assert code == 2
    assert errors == f"nslib: no records in {folders}/figures/<run name>/records: run `make reproduce` first\n"
    leave("02_noise_synthesis", run="a")
    code, _, errors = call("report", "laptop")
    assert code == 2
    assert f"no records in {folders}/figures/laptop/records: run `make reproduce` first" in errors


def test_report_names_a_damaged_record_in_one_line(call):
    folder = leave("02_noise_synthesis").folder
    (folder / "records" / "02_noise_synthesis.json").write_text("{")
    code, _, errors = call("report")
    assert code == 2
    assert errors.count("\n") == 1
    assert "records/02_noise_synthesis.json cannot be read as a record" in errors


def test_reproduce_ends_with_the_page(call, monkeypatch):
    import nslib.reproduce as runner

    def reproduce(*args, **kwargs):
        leave("02_noise_synthesis")
        print("table")
        return [Outcome("02_noise_synthesis", DONE, 1.0)]

    monkeypatch.setattr(runner, "reproduce", reproduce)
    code, out, _ = call("reproduce", "02", "--run-name", RUN)
    assert code == 0
    page = gather(RUN).folder / "index.html"
    assert out.split() == ["table", str(page)]
    assert page.is_file()


# What the notebooks say


@pytest.mark.parametrize("run", ["laptop", "full", "imagenet-mini-finetuned"])
def test_every_table_and_figure_of_a_notebook_stands_below_the_text_that_explains_it(run):
    records = [r for r in gather(run, ROOT / "figures").records if not r.by_command]
    saved = {
        (r.notebook, f.rpartition(".")[0].removeprefix(f"{r.notebook}_").replace("_", " "))
        for r in records
        for f in r.files
    }
    assert saved
    assert [name for name in saved if not notes_of(name[0]).of(name[1])] == []
    assert all(notes_of(notebook).opening for notebook, _ in saved)


def test_a_text_of_a_notebook_is_told_once_and_above_all_that_it_explains():
    leave("05_finetuning", tables={"rounds": pd.DataFrame({"a": [1]}), "cost": pd.DataFrame({"a": [2]}),
                                   "slopes": pd.DataFrame({"a": [3]}), "own": pd.DataFrame({"a": [4]})})  # fmt: skip
    page = Page(render(gather(RUN), {}))
    said = ("Claims. C7", "Rounds What each", "rounds csv", "What it costs", "cost csv", "All seeds", "slopes csv")
    places = [page.text.index(told) for told in (*said, "own csv")]
    assert places == sorted(places)
    assert page.text.count("What each round of each seed found") == 1


def test_what_a_notebook_concludes_stands_below_all_that_it_saves():
    leave("06_robustness", tables={"table2": pd.DataFrame({"model": [1]})})
    page = Page(render(gather(RUN), {}))
    assert "read off the distance to plain, not to the base model" in page.text
    assert page.text.index("table2 csv") < page.text.index("read off the distance to plain")
    assert "SAM (−.1 [−.2, −.0]): figures/full." in page.text  # no link: it would lead elsewhere from the page
    assert notes_of("explore").closing == ""  # its last text has a heading of its own


def test_a_notebook_that_is_not_there_says_nothing():
    notes = notes_of("99_own")
    assert (notes.opening, notes.closing, notes.of("table")) == ("", "", None)
