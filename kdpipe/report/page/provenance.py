"""Where the numbers of a study come from: protocols, data, splits, recipes, machines, versions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdpipe import __version__
from kdpipe.errors import ConfigError
from kdpipe.markup import DAGGER, Table
from kdpipe.protocols import get_protocol
from kdpipe.provenance import digest, file_digest
from kdpipe.report.page.inputs import Inputs, read_json
from kdpipe.stats.scores import CELL

#: how many folders a cell lies at most below the folder of its split
_DEPTH = 6
#: entries of a list that is still written out
_LONG = 60
_PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Provenance:
    """All that says where the numbers come from; tables without rows are left out of the page."""

    protocols: list[tuple[str, str]]
    tables: list[Table]
    test_cases: list[tuple[str, list[str]]]
    version: str


def provenance(inputs: Inputs) -> Provenance:
    """Collect settings from `run` and facts from the cells' ``model.json`` and ``split.json``.

    Raises:
        DataError: one of these files is there and cannot be read.
    """
    run = inputs.run
    facts = [read_json(Path(cell["folder"]) / "model.json") for cell in run["cells"]]
    splits = dict(_splits(run["cells"]))
    tables = [
        _data_sets(run),
        _split_table(splits),
        *_entries(run),
        _recipes(run),
        _pairs("Statistics", run.get("statistics", {})),
        _pairs("Equal budget", _budget(run)),
        *_cells(run["cells"], facts),
    ]
    return Provenance(
        protocols=list(_protocols(inputs)),
        tables=[table for table in tables if table.rows],
        test_cases=[
            (name, list(map(str, split.get("test", ())))) for name, split in splits.items()
        ],
        version=__version__,
    )


def _protocols(inputs: Inputs) -> Iterator[tuple[str, str]]:
    """Yield name with version, and definition, as they were when the study was configured."""
    known = inputs.run.get("definitions", {})
    scored = [] if inputs.results.empty else list(inputs.results["protocol"].unique())
    for name in dict.fromkeys([*inputs.run.get("protocols", ()), *known, *scored]):
        try:
            facts = known.get(name) or get_protocol(name).model_dump()
        except ConfigError:
            yield name, "This version of kdpipe does not know the protocol."
            continue
        grid = "" if facts.get("grid", "native") == "native" else ", scored on the prepared grid"
        source = f" Source: {facts['source']}" if facts.get("source") else ""
        yield f"{name}, version {facts['version']}{grid}", f"{facts['definition']}{source}"


def _data_sets(run: dict[str, Any]) -> Table:
    rows = []
    for name, facts in run["datasets"].items():
        manifest = Path(facts.get("manifest", ""))
        rows.append(
            [
                name,
                _text(facts.get("title")),
                ", ".join(filter(None, (facts.get("modality"), *facts.get("channels", ())))),
                _text(facts.get("licence")),
                ", ".join(facts.get("structures", {})),
                f"{facts.get('preset', '')}, patch {_text(facts.get('patch'))}",
                _text(facts.get("tolerances_mm")),
                file_digest(manifest) if manifest.is_file() else "not here",
            ]
        )
    header = ["data set", "title", "images", "licence", "structures", "preparation"]
    header += ["NSD tolerances, mm", "sha256 of the list of files"]
    return Table("Data sets", header, rows)


def _splits(cells: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each split once, as it was found above the folder of a cell."""
    seen = set[str]()
    for cell in cells:
        name = f"{cell['dataset']} {cell['split']}/{cell['fold']}"
        if name not in seen:
            seen.add(name)
            above = list(Path(cell["folder"]).parents)[:_DEPTH]
            file = next((f for p in above if (f := p / "split.json").is_file()), None)
            yield name, read_json(file) if file else {}


def _split_table(splits: Mapping[str, dict[str, Any]]) -> Table:
    rows = []
    for name, split in splits.items():
        counts = [str(len(split[part])) if part in split else "" for part in _PARTS]
        rule, sha = _text(split.get("rule")), _text(split.get("sha256")) or "not here"
        rows.append([name, *counts, rule, "yes" if split.get("selects_on_test") else "no", sha])
    header = ["split", *_PARTS, "rule", "selects on test", "sha256 of the lists"]
    return Table("Splits", header, rows)


def _entries(run: dict[str, Any]) -> Iterator[Table]:
    readings = set(run.get("readings", ()))
    for axis, entries in run.get("entries", {}).items():
        rows = [
            [
                f"{label}{DAGGER if axis == 'methods' and label in readings else ''}",
                _text(entry.get("name")),
                _text(entry.get("params")) or "defaults",
            ]
            for label, entry in entries.items()
        ]
        yield Table(axis.capitalize(), ["label", "entry", "parameters that were set"], rows)


def _recipes(run: dict[str, Any]) -> Table:
    """One column a role; a setting that both share is still said twice."""
    roles = {role: dict(_flat(recipe)) for role, recipe in run.get("training", {}).items()}
    names = dict.fromkeys(name for recipe in roles.values() for name in recipe)
    rows = [[name, *(recipe.get(name, "") for recipe in roles.values())] for name in names]
    return Table("Training recipes", ["setting", *roles], rows)


def _budget(run: dict[str, Any]) -> dict[str, Any]:
    """The trials that every method had, if it had any."""
    return {"trials of each method": run["budget"]} | run["search"] if run.get("budget") else {}


def _pairs(title: str, settings: dict[str, Any]) -> Table:
    return Table(title, ["setting", "value"], [[name, text] for name, text in _flat(settings)])


def _cells(cells: list[dict[str, Any]], facts: list[dict[str, Any]]) -> list[Table]:
    """Return one row a trained network, and the different environments and machines."""
    environments, machines = _Numbered("E"), _Numbered("M")
    rows = []
    for cell, fact in zip(cells, facts, strict=True):
        rows.append(
            [
                *(_text(cell.get(key)) for key in CELL),
                environments.name(fact.get("environment")),
                machines.name(fact.get("hardware")),
                _number(fact.get("seconds"), 1, 0),
                _number(fact.get("energy_j"), 3.6e6, 3),
                _text(fact.get("best_epoch")),
                _number(fact.get("validation_dice"), 0.01, 2),
                _text(fact.get("tuning")),
                _text(fact.get("weights_sha256")) or "not here",
                _text(fact.get("code")),
            ]
        )
    measured = ["training s", "energy kWh", "best epoch", "validation Dice %", "tuning"]
    header = [*CELL, "environment", "machine", *measured, "sha256 of the weights", "code"]
    empty = {index for index, name in enumerate(header) if not any(row[index] for row in rows)}
    rows = [[text for index, text in enumerate(row) if index not in empty] for row in rows]
    header = [name for index, name in enumerate(header) if index not in empty]
    return [
        Table("Trained networks", header, rows),
        environments.table("Environments"),
        machines.table("Machines"),
    ]


class _Numbered:
    """Gives equal things the same short name."""

    def __init__(self, letter: str) -> None:
        self.letter = letter
        self.seen: dict[str, tuple[str, Any]] = {}

    def name(self, value: Any) -> str:
        if not value:
            return ""
        number = f"{self.letter}{len(self.seen) + 1}"
        return self.seen.setdefault(digest(value), (number, value))[0]

    def table(self, title: str) -> Table:
        rows = [
            [name, "; ".join(f"{key} {text}" for key, text in _flat(value))]
            for name, value in self.seen.values()
        ]
        return Table(title, ["name", "what it is"], rows)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield ``a.b`` -> text for nested dictionaries."""
    if not isinstance(value, dict):
        yield prefix, _text(value)
        return
    for key, inner in value.items():
        yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))


def _text(value: Any) -> str:
    if value is None or value in ({}, []):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " × ".join(map(str, value)) if _all_numbers(value) else ", ".join(map(_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    return str(value)


def _all_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _number(value: Any, unit: float, digits: int) -> str:
    if not isinstance(value, int | float):
        return ""
    return f"{value / unit:.{digits}f}"


def claim_text(claim: dict[str, Any]) -> str:
    """Return the claim as indented JSON, its tables by their lengths: the page has their rows."""
    short = {
        name: f"{len(value)} rows" if isinstance(value, list) and len(value) > _LONG else value
        for name, value in claim.items()
    }
    return json.dumps(short, indent=2, ensure_ascii=False) if claim else ""
