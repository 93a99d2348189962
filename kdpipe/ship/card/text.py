"""Sentences of a model card: what the data allow, how a network was trained and how it is fed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kdpipe.composition import SUM, method_names
from kdpipe.errors import ConfigError
from kdpipe.facts import method_facts
from kdpipe.ship.measured import Facts

#: licences whose text allows commercial use and copies, if a card leaves it open
_FREE = ("CC0-", "CC-BY-4", "CC-BY-3", "CC-BY-SA-", "MIT", "Apache-", "BSD-", "ODC-BY-", "PDDL-")


def restrictions(licences: list[Facts]) -> list[str]:
    """Return what the licences of the data restrict, a sentence each, the strictest sense first."""
    found = [sentence for licence in licences for sentence in _restrictions(licence)]
    return list(dict.fromkeys(found))


def _restrictions(licence: Facts) -> Iterator[str]:
    who, spdx = licence["id"], licence["spdx"]
    if licence["commercial"] is False or "-NC" in spdx:
        yield (
            f"**Non-commercial.** The licence of {who} ({spdx}) forbids commercial use of the "
            "data. Do not sell, or use for profit, what was trained on them unless the owners "
            "allow it."
        )
    elif licence["commercial"] is None and not spdx.startswith(_FREE):
        yield f"Whether {who} ({spdx}) may be used commercially is not known: ask its owners."
    if licence["redistribute"] == "share_alike" or "-SA" in spdx:
        yield (
            f"**Share-alike.** What is made from {who} ({spdx}) is to be passed on under the same "
            "terms. Take this network for such a work unless the owners say otherwise."
        )
    if "-ND" in spdx:
        yield f"**No derivatives.** The licence of {who} ({spdx}) lets nobody pass on changed data."
    if licence["redistribute"] is False and not spdx.startswith(_FREE):
        yield (
            f"As far as its card knows, the images of {who} are not to be passed on. None is in "
            "this folder."
        )
    if licence["gated"]:
        yield f"{who} is given out after registration or acceptance of terms; they bind you too."
    for key, word in (("note", "Note"), ("conflict", "Sources disagree")):
        if licence[key]:
            yield f"{word}, on {who}: {licence[key]}."


def known(data: Facts) -> list[str]:
    """Return what is left out of the data, accepted in them, or odd about them."""
    excluded = (f"Left out: {', '.join(e['cases'])} ({e['reason']})." for e in data["excluded"])
    accepted = (f"Accepted ({w['code']}): {w['reason']}." for w in data["waivers"])
    return [*excluded, *accepted, *data["quirks"]]


def preparation(data: Facts) -> list[tuple[str, str]]:
    """Return (what, how) of each step from a scan to a window."""
    preset = data["preset"]
    kinds = preset["intensity"] if isinstance(preset["intensity"], list) else [preset["intensity"]]
    spacing = preset["spacing"] or [None]
    sides = preset["patch"]
    slices = len(sides) == 2
    return [
        ("channels", ", ".join(data["channels"])),
        ("axes", preset["orientation"] or "as stored"),
        ("spacing, mm", " x ".join("as stored" if s is None else f"{s:g}" for s in spacing)),
        ("resampling of images", preset["image_interpolation"]),
        ("intensity", "; ".join(_intensity(kind) for kind in kinds)),
        ("cropped to the foreground", "yes" if preset["crop_foreground"] else "no"),
        (
            "window, voxels",
            " x ".join(map(str, sides)) + (", slices along the third axis" if slices else ""),
        ),
    ]


def _intensity(kind: Facts) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in kind.items() if key != "kind")
    return f"{kind['kind']}{f' ({settings})' if settings else ''}"


def structures(data: Facts) -> list[str]:
    """Return the names of what is segmented: regions, or labels but for the background."""
    if data["regions"]:
        return [name for name, _ in data["regions"]]
    return [name for index, name in _by_id(data) if index]


def labels(data: Facts) -> list[list[str]]:
    """Return rows of label id and name, and of regions with the ids that they unite."""
    rows = [[str(index), name] for index, name in _by_id(data)]
    return rows + [[" + ".join(map(str, ids)), f"region {name}"] for name, ids in data["regions"]]


def channels(data: Facts) -> str:
    """Return what the channels of the logits are."""
    if data["regions"]:
        return (
            "The channels of the logits are the regions, in this order; a voxel lies in each whose "
            "logit is above 0. Where regions overlap, a label map shows the smallest."
        )
    return "The channels of the logits are the ids, in their order; the largest is the label."


def _by_id(data: Facts) -> list[tuple[int, str]]:
    return sorted((int(index), str(name)) for index, name in data["labels"].items())


def method(entry: Facts, is_reading: bool) -> list[str]:
    """Return what a method is and where it comes from, a sentence or two for each part.

    Args:
        entry: ``name`` and ``params`` as in a cell's ``run.json``.
        is_reading: whether the study marks it as a reading of its paper.
    """
    names = method_names(entry["name"], entry["params"])
    found = []
    for name in names[1:] if entry["name"] == SUM else names:
        try:
            facts = method_facts(name)
        except ConfigError:  # the study is of a version that had it
            found.append(f"{name} (not known to this version of kdpipe)")
            continue
        reading = " **A reading: the paper's full text could not be had.**"
        paper = " ".join(facts["paper"].split())
        marked = reading if facts["reading"] and is_reading else ""
        found.append(f"{_sentence(facts['summary'])} Paper: {_sentence(paper)}{marked}")
    return found


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def settings(value: Any) -> str:
    """Return nested settings as ``a.b value, c value``."""
    return ", ".join(f"{key} {text}" for key, text in _flat(value)) or "none"


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{prefix}.{number}")
    elif isinstance(value, list):
        yield prefix, " x ".join(map(str, value)) or "none"
    else:
        words = {None: "none", True: "yes", False: "no"}
        yield prefix, words[value] if value is None or isinstance(value, bool) else str(value)
