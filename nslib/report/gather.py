"""Records read back: what the notebooks of a run found, and what of them is missing, contested or not there."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from nslib.intervals import Estimate
from nslib.profiles import PROFILES
from nslib.report.claims import FAILS, HOLDS, UNSHOWN, UNTESTABLE, Verdict, judge, read_claims
from nslib.report.conditions import SettingDifference, VersionGroup, setting_differences, version_groups
from nslib.runtime import checkout, figures_path, whole_files

NOT_RUN = "not run"
OF_COMMAND = ".evaluation.json"  # ends the name of a command's record, which lies beside its CSV and judges nothing
VERDICTS = (HOLDS, UNSHOWN, FAILS, UNTESTABLE, NOT_RUN)


@dataclass(frozen=True)
class StoredRecord:
    """`records/<name>.json`, left by a notebook, or `<name>.evaluation.json`, by `nslib evaluate --out <name>.csv`."""

    name: str
    notebook: str  # of a command: the one whose name its own begins with, else its own
    by_command: bool
    config: dict[str, Any]
    versions: dict[str, str]  # of nslib, Python and packages, and the commit
    hardware: dict[str, Any]
    made: str  # the day
    minutes: float | None  # of the notebook's own run
    verdicts: tuple[Verdict, ...]
    files: tuple[str, ...]
    hashes: dict[str, str]  # of the files as they were left; empty in older records and those of commands
    facts: dict[str, Any]


@dataclass(frozen=True)
class GatheredRun:
    """All records of one run, in the order of their names. Files that no record lists are left out."""

    run_name: str
    folder: Path
    records: tuple[StoredRecord, ...]
    titles: dict[str, str]  # of every numbered notebook that there is

    @property
    def profiles(self) -> tuple[str, ...]:
        """The profiles of the records, that of the first one first."""
        return tuple(dict.fromkeys(r.config["profile"] for r in self.records))

    @property
    def missing(self) -> tuple[str, ...]:
        """Numbered notebooks without a record."""
        left = {r.name for r in self.records if not r.by_command}
        return tuple(name for name in self.titles if name not in left)

    @property
    def strangers(self) -> tuple[str, ...]:
        """Records of notebooks that are no longer there, whose verdicts count nowhere."""
        return tuple(r.name for r in self.records if not r.by_command and r.name not in self.titles)

    @cached_property
    def contested(self) -> dict[str, tuple[str, ...]]:
        """Files that several records list, and these records: a later run wrote over an earlier one's file."""
        owners = {file: tuple(r.name for r in self.records if file in r.files) for file in self._files}
        return {file: names for file, names in owners.items() if len(names) > 1}

    @cached_property
    def absent(self) -> tuple[str, ...]:
        """Files that a record lists and that are not there. PDFs of pictures, which old records have, do not count."""
        gone = [file for file in self._files if not (self.folder / file).is_file()]
        return tuple(f for f in gone if not (f.endswith(".pdf") and (self.folder / f).with_suffix(".png").is_file()))

    @cached_property
    def altered(self) -> tuple[str, ...]:
        """Files that are not those that their record left; of a record without hashes, or contested, none is told."""
        left = {file: told for r in self.records for file, told in r.hashes.items() if file not in self.contested}
        there = (f for f in sorted(left) if (self.folder / f).is_file())
        return tuple(f for f in there if short_hash(self.folder / f) != left[f])

    @cached_property
    def outdated(self) -> tuple[str, ...]:
        """Verdicts that claims.csv does not ask of their notebook, or that its rule, applied again, does not give."""
        claims = read_claims()
        asked = set(zip(claims.claim, claims.part, claims.notebook, strict=True))
        told = [(r, v) for r in self.records for v in r.verdicts if r.name not in self.strangers]
        return tuple(
            f"{v.claim}.{v.part}"
            for r, v in told
            if (v.claim, v.part, r.name) not in asked or _judged_again(v, r.config) != v
        )

    @cached_property
    def kept(self) -> dict[tuple[str, ...], tuple[str, ...]]:
        """Names of records that rest on the same kept results of other commits than their own, and those commits."""
        found: dict[tuple[str, ...], list[str]] = {}
        for record in self.records:
            commits = dict.fromkeys(job["commit"] for job in record.facts.get("jobs", ()))
            commits.pop(record.versions["commit"], None)
            if commits:
                found.setdefault(tuple(commits), []).append(record.name)
        return {tuple(names): commits for commits, names in found.items()}

    @cached_property
    def groups(self) -> tuple[VersionGroup, ...]:
        """The records by the versions that made them."""
        return version_groups({r.name: r.versions for r in self.records})

    @cached_property
    def differences(self) -> tuple[SettingDifference, ...]:
        """Settings that are not the same in all records."""
        return setting_differences({r.name: r.config for r in self.records})

    @cached_property
    def _files(self) -> list[str]:
        return sorted({file for r in self.records for file in r.files})


def notebook_titles() -> dict[str, str]:
    """Every numbered notebook with its title; outside a checkout those that claims.csv names, by name alone."""
    repository = checkout()
    if repository is None:
        return {name: name for name in sorted(set(read_claims().notebook))}
    titles = {}
    for path in sorted((repository / "paper_nb").glob("[0-9]*.py")):
        lines = path.read_text(encoding="utf-8").splitlines()
        titles[path.stem] = next((s.removeprefix("# # ") for s in lines if s.startswith("# # ")), path.stem)
    return titles


def recorded_runs(root: Path | None = None) -> list[str]:
    """Names of the runs with records below a folder of figures, by default `$NSLIB_FIGURES` or `figures/`."""
    return sorted({path.parent.parent.name for path in whole_files(root or figures_path(""), "*/records/*.json")})


def figure_folders() -> tuple[Path, ...]:
    """Where runs lie: `$NSLIB_FIGURES`, or `figures/`, and the checkout's own `figures/` if that is another folder."""
    repository = checkout()
    return tuple(dict.fromkeys((figures_path(""), *([repository / "figures"] if repository else []))))


def gather(run_name: str, root: Path | None = None) -> GatheredRun:
    """Read the records of a run: those of notebooks directly in `records/`, those of commands in its folder.

    Raises:
        FileNotFoundError: there are none.
        ValueError: one is damaged; names it.
    """
    folder = (root or figures_path("")) / run_name
    titles = notebook_titles()
    paths = whole_files(folder / "records", "*.json")
    if not paths:
        there = ", ".join(recorded_runs(folder.parent)) or "none"
        raise FileNotFoundError(
            f"no records in {folder / 'records'}: run `make reproduce` first, or name a run that there is: {there}"
        )
    read = [_read(path, titles) for path in (*paths, *whole_files(folder, f"*{OF_COMMAND}"))]
    return GatheredRun(run_name, folder, tuple(sorted(read, key=lambda record: record.name)), titles)


def gather_all(*roots: Path, without: str = "") -> list[GatheredRun]:
    """Every run below the folders of figures, in the order of the profiles, then by name; there may be none.

    By default those of `figure_folders`. Where two hold a run of the same name, the first alone is read: they are not
    blended.

    Args:
        without: a notebook whose records are left out, and with them runs that hold no other.
    Raises:
        ValueError: a record is damaged; names it.
    """
    found: dict[str, GatheredRun] = {}
    for root in roots or figure_folders():
        found |= {name: gather(name, root) for name in recorded_runs(root) if name not in found}
    order = {profile: place for place, profile in enumerate(PROFILES)}
    runs = [replace(run, records=tuple(r for r in run.records if r.name != without)) for run in found.values()]
    return sorted(
        (run for run in runs if run.records), key=lambda run: (order.get(run.profiles[0], len(order)), run.run_name)
    )


_TOLD = ("verdict", "of", "value", "low", "high", "n", "seeds", "statistic", "rule")


def claims_of(run: GatheredRun | None) -> pd.DataFrame:
    """A line for each part of each claim: the run's verdict, or `not run` where the claim's notebook has none.

    Columns: claim, part, words, profile (the run name), verdict, of (which of several decided), value, low, high, n,
    seeds, statistic (what the value is), rule (as applied), versions (label of the record's group), testable at
    (profiles, by claims.csv), notebook, cell (its heading there), changed (when and how the rule was, since the first
    experiment).
    """
    records = {r.name: r for r in run.records} if run else {}
    labels = {name: group.label for group in run.groups for name in group.records} if run else {}
    rows = []
    for row in read_claims().itertuples():
        judged = records[row.notebook].verdicts if row.notebook in records else ()
        rule = f"{row.bound} {row.operator} {row.threshold:g}"
        found = next(
            (v for v in judged if (v.claim, v.part) == (row.claim, row.part)),
            Verdict(row.claim, row.part, NOT_RUN, row.statistic, rule),
        )
        rows.append(
            {
                **{"claim": row.claim, "part": row.part, "words": row.words, "profile": run.run_name if run else ""},
                **{name: getattr(found, name) for name in _TOLD},
                "versions": labels[row.notebook] if found.verdict != NOT_RUN else "",
                "testable at": row.profiles,
                "notebook": row.notebook,
                "cell": row.cell,
                "changed": row.changed,
            }
        )
    return pd.DataFrame(rows).astype(dict.fromkeys(("value", "low", "high"), float))


def all_claims(runs: Sequence[GatheredRun]) -> pd.DataFrame:
    """`claims_of` every run below each other; without any run every claim is `not run`."""
    return pd.concat([claims_of(run) for run in runs or [None]], ignore_index=True)


def short_hash(path: Path) -> str:
    """By which a file is known again: the beginning of its SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _judged_again(verdict: Verdict, config: dict[str, Any]) -> Verdict | None:
    """The rule of claims.csv as it is now, on the numbers that decided then; without any its words do not matter.

    None where it gives no verdict: the claim is no longer there, or its rule now asks for an interval that they lack.
    """
    v = verdict
    ends = (math.nan if end is None else end for end in (v.low, v.high))
    estimates = [] if v.value is None else Estimate(v.value, *ends, v.n, v.seeds)
    try:
        again = judge(v.claim, v.part, estimates, profile=config["profile"])
    except (KeyError, ValueError):
        return None
    again = replace(again, of=v.of)
    return replace(again, statistic=v.statistic, rule=v.rule) if v.value is None else again


def _told_apart(verdict: Verdict, config: dict[str, Any]) -> Verdict:
    """What is not shown, in records from before it was told apart from what does not hold."""
    if verdict.verdict != FAILS:
        return verdict
    again = _judged_again(verdict, config)
    return again if again == replace(verdict, verdict=UNSHOWN) else verdict


def _read(path: Path, titles: dict[str, str]) -> StoredRecord:
    """One record.

    Raises:
        ValueError: it is none, or not the one that its name tells.
    """
    remedy = "run its notebook again, or take the file away"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        by_command = path.name.endswith(OF_COMMAND)
        name = path.name.removesuffix(OF_COMMAND if by_command else ".json")
        stored["config"]["profile"]  # no record is whole without
        if not by_command and stored["notebook"] != name:
            raise ValueError(f"it is the record of {stored['notebook']}")
        verdicts = tuple(Verdict(**v) for v in ([] if by_command else stored["verdicts"]))
        if unknown := {v.verdict for v in verdicts} - set(VERDICTS):
            raise ValueError(f"verdict must be one of {', '.join(VERDICTS)}, got {', '.join(sorted(unknown))}")
        owners = [title for title in titles if name.startswith(f"{title}_")]
        return StoredRecord(
            name=f"{name}.evaluation" if by_command and name in titles else name,  # beside that of the notebook
            notebook=owners[-1] if by_command and owners else name,
            by_command=by_command,
            config=dict(stored["config"]),
            versions={**stored["versions"], "commit": stored["commit"]},
            hardware=dict(stored["hardware"]),
            made=stored["made"],
            minutes=None if by_command else float(stored["minutes"]),
            verdicts=tuple(_told_apart(v, stored["config"]) for v in verdicts),
            files=(f"{name}.csv",) if by_command else tuple(stored["files"]),
            hashes=dict(stored.get("hashes", {})),
            facts=stored.get("facts", {}),
        )
    except KeyError as error:
        raise ValueError(f"{path} is no whole record, it lacks {error}: {remedy}") from error
    except (OSError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a record ({error}): {remedy}") from error
