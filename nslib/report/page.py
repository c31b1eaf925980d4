"""One HTML file for a run: verdicts, figures, tables beside those of the paper, and how all of it was made."""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from nslib.intervals import span
from nslib.report.cells import Cells, cells, number, read_cells
from nslib.report.claims import FAILS, HOLDS, UNSHOWN, UNTESTABLE
from nslib.report.executed import executed_pages, heading_anchor
from nslib.report.gather import NOT_RUN, GatheredRun, StoredRecord, claims_of, gather
from nslib.report.notes import Note, Notes, notes_of
from nslib.report.reference import printed
from nslib.runtime import write_text

SYMBOLS = {HOLDS: "✓", UNSHOWN: "≈", FAILS: "✗", UNTESTABLE: "○", NOT_RUN: "–"}
LONG, CAP = 30, 100  # rows above which a table is folded, and at which it ends
_BESIDE = "By a command, or by the notebook as it was"
_LARGE = 1 << 18  # bytes of a PNG, which no plot has

# Which numbers of the paper belong beside which tables of which notebook.
PRINTED = {
    "01_patch_nullspace": {"table1": "Table 1, as printed"},
    "02_noise_synthesis": {
        "figure3a": "Figure 3a, read off it; of learned noise, gap_largest is a bound",
        "figure3b": "Figure 3b, read off it",
    },
    "05_finetuning": {
        "figure4": "Figure 4, read off it where that can be done; all relative to step 0",
        "table5": "Table 5, as printed",
    },
    "06_robustness": {"table2": "Table 2, as printed"},
    "07_adversarial_finetuning": {"table3": "Table 3, as printed"},
    "08_epsilon_ablation": {"table4": "Table 4, as printed"},
}


@dataclass(frozen=True)
class Entry:
    """A figure, a table, or a figure with the table behind it; and the paper's numbers in its place."""

    name: str
    record: str
    heading: str = ""  # under which the notebook saves it, and what it says there; where it is not as before
    said: str = ""  # HTML
    figure: str = ""  # data URI
    files: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()  # listed, but not there
    table: Cells | None = None
    paper: Cells | None = None
    paper_name: str = ""


@dataclass(frozen=True)
class Section:
    """What one notebook left, and what commands left under its name."""

    notebook: str
    title: str
    label: str  # of its versions
    executed: str  # relative address of the executed notebook; empty: not there
    opening: str  # what the notebook says of itself, HTML
    entries: tuple[Entry, ...]
    closing: str  # what it concludes, HTML


def write_page(run_name: str) -> Path:
    """Write `figures/<run name>/index.html`, and the executed notebooks as HTML where there are any.

    Raises:
        FileNotFoundError: the run left no records.
        ValueError: a record, table or executed notebook is damaged; names it.
    """
    run = gather(run_name)
    links = {name: os.path.relpath(path, run.folder) for name, path in executed_pages(run_name).items()}
    return write_text(run.folder / "index.html", render(run, links))


def render(run: GatheredRun, links: dict[str, str]) -> str:
    """The page, the same bytes for the same records, files and texts of the notebooks.

    Args:
        links: address of the executed notebook, relative to the page, by notebook.
    Raises:
        ValueError: a table is damaged; names it.
    """
    claims = claims_of(run)
    links = {name: quote(Path(path).as_posix()) for name, path in links.items()}
    with ThreadPoolExecutor() as pool:  # pictures take most of the time, outside Python
        sections = list(pool.map(lambda name: _section(run, name, links), _notebooks(run)))
    return _template().render(
        run=run,
        sections=sections,
        links=links,
        claims=[row._asdict() for row in claims.rename(columns={"testable at": "testable_at"}).itertuples(index=False)],
        counts={g.label: Counter(claims[claims.versions == g.label].verdict) for g in run.groups},
        total=Counter(claims.verdict),
        robust={row.part: row for row in claims[claims.claim == "C11"].itertuples(index=False)},
        common=_common([g.versions for g in run.groups]),
        seeds=_seeds(run),
        symbols=SYMBOLS,
        long=LONG,
        cap=CAP,
    )


@cache
def _template():
    environment = Environment(
        loader=PackageLoader("nslib.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters |= {
        "number": number,
        "quoted": quote,
        "anchor": heading_anchor,
        "slug": lambda text: text.replace(" ", "-"),
        "settings": lambda value: json.dumps(value, indent=1, sort_keys=True),
    }
    return environment.get_template("page.html.j2")


def _notebooks(run: GatheredRun) -> list[str]:
    """All there are, and those of records that belong to none of them."""
    return sorted({*run.titles, *(r.notebook for r in run.records)})


def _section(run: GatheredRun, notebook: str, links: dict[str, str]) -> Section:
    labels = {name: group.label for group in run.groups for name in group.records}
    entries = [e for r in run.records if r.notebook == notebook for e in _entries(run, r)]
    if entries:
        for name, paper_name in reversed(PRINTED.get(notebook, {}).items()):
            entries = _beside_paper(name, paper_name, entries, notebook)
    title, label, notes = run.titles.get(notebook, notebook), labels.get(notebook, ""), notes_of(notebook)
    entries = tuple(_with_notes(entries, notes))
    return Section(notebook, title, label, links.get(notebook, ""), notes.opening, entries, notes.closing)


def _with_notes(entries: list[Entry], notes: Notes) -> Iterator[Entry]:
    """Entries in the order of their notebook, with what it says above the cells that save them, each text once."""
    before, beside = Note("", ""), Note(_BESIDE if notes.saved else "", "")
    for entry in sorted(entries, key=lambda e: notes.place(e.name)):
        note = notes.of(entry.name) or beside
        yield replace(entry, heading=note.heading if note.heading != before.heading else "",
                      said=note.html if note.html != before.html else "")  # fmt: skip
        before = note


def _entries(run: GatheredRun, record: StoredRecord) -> list[Entry]:
    """Files of a record by their names without suffix. A table that a command wrote again is that command's."""
    taken = set() if record.by_command else {file for r in run.records if r.by_command for file in r.files}
    stems: dict[str, list[str]] = {}
    for file in record.files:
        if file not in taken:
            stems.setdefault(file.rpartition(".")[0], []).append(file)
    return [_entry(run, record, stem, files) for stem, files in stems.items()]


def _entry(run: GatheredRun, record: StoredRecord, stem: str, files: list[str]) -> Entry:
    there = [f for f in files if (run.folder / f).is_file()]
    gone = [f for f in files if f not in there]
    picture, data = f"{stem}.png", f"{stem}.csv"
    drawn = picture in there
    return Entry(
        name=stem.removeprefix(f"{record.notebook}_").replace("_", " "),
        record=record.name,
        figure=_data_uri(run.folder / picture) if drawn else "",
        files=tuple(there),
        absent=tuple(f for f in gone if f in run.absent),
        table=read_cells(run.folder / data, most=CAP) if data in there else None,
    )


def _data_uri(path: Path) -> str:
    """The picture as WebP, half as large as PNG: as it is or, a large one, which is of pictures, with some loss."""
    webp, small = BytesIO(), path.stat().st_size <= _LARGE
    with Image.open(path) as picture:  # to a lossless one `quality` is the effort
        picture.convert("RGB").save(webp, "WEBP", lossless=small, quality=100 if small else 50, method=6)
    return "data:image/webp;base64," + base64.b64encode(webp.getvalue()).decode()


def _beside_paper(name: str, paper_name: str, entries: list[Entry], notebook: str) -> list[Entry]:
    """Put the paper's table beside ours of that name; without one of ours it stands alone, before the others."""
    frame = printed(name)
    paper = cells(frame.astype(object).where(frame.notna(), None), most=CAP)
    ours = next((e for e in entries if e.name == name and e.table), None)
    if ours is None:
        return [Entry(name, notebook, paper=paper, paper_name=paper_name), *entries]
    table = ours.table
    if name == "table2":  # our file holds the printed rows too
        rows = tuple(row for row in table.rows if row[0] not in set(frame.model))
        table = replace(table, rows=rows, total=len(rows))
    both = replace(ours, table=table, paper=paper, paper_name=paper_name)
    return [both if e is ours else e for e in entries]


def _common(versions: list[dict[str, str]]) -> dict[str, str]:
    """Versions that are the same in all groups."""
    return {k: v for k, v in versions[0].items() if all(other.get(k) == v for other in versions)}


def _seeds(run: GatheredRun) -> dict[str, str]:
    """For each record the seed that it started from, and how many the numbers behind its verdicts come from."""
    told = {}
    for record in run.records:
        counts = [v.seeds for v in record.verdicts if v.seeds]
        behind = f"; verdicts over {span(counts)}" if counts else ""
        told[record.name] = f"seed {record.config.get('seed', '?')}{behind}"
    return told
