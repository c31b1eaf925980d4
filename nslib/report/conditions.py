"""Under which conditions records were made: versions and settings, so that no two kinds are blended unseen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class VersionGroup:
    """Records made by the same versions and the same commit."""

    label: str  # v1, v2, ... in the order of the records
    versions: dict[str, str]
    records: tuple[str, ...]


@dataclass(frozen=True)
class SettingDifference:
    """A setting that is not the same in all records: each value as JSON with the records that took it.

    The value None says that these records know no such setting: they were made before there was one.
    """

    name: str
    values: tuple[tuple[str | None, tuple[str, ...]], ...]


def version_groups(versions: Mapping[str, Mapping[str, str]]) -> tuple[VersionGroup, ...]:
    """Records, by name, by what made them."""
    kinds = _by_value({record: json.dumps(made_by) for record, made_by in versions.items()})
    return tuple(VersionGroup(f"v{i}", json.loads(text), names) for i, (text, names) in enumerate(kinds.items(), 1))


def setting_differences(configs: Mapping[str, Mapping[str, Any]]) -> tuple[SettingDifference, ...]:
    """Settings of records, by name, that have more than one value; at the end those that some records lack."""
    flat = {record: _flat(config) for record, config in configs.items()}
    differing, lacking = [], {}
    for name in sorted({name for config in flat.values() for name in config}):
        kinds = _by_value({record: config[name] for record, config in flat.items() if name in config})
        if len(kinds) > 1:
            differing.append(SettingDifference(name, tuple(kinds.items())))
        without = tuple(record for record, config in flat.items() if name not in config)
        if without:
            lacking.setdefault((name.split(".")[0], without), []).append(name)
    for (section, without), names in lacking.items():
        told = names[0] if len(names) == 1 else f"{section}.* ({len(names)} settings)"
        differing.append(SettingDifference(told, ((None, without),)))
    return tuple(differing)


def _by_value(texts: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Names by equal text, in the order in which the texts first occur."""
    kinds: dict[str, tuple[str, ...]] = {}
    for name, text in texts.items():
        kinds[text] = (*kinds.get(text, ()), name)
    return kinds


def _flat(config: Mapping[str, Any]) -> dict[str, str]:
    """Settings by dotted name, values as JSON."""
    (flat,) = pd.json_normalize(dict(config)).to_dict("records")
    return {name: json.dumps(value) for name, value in flat.items()}
