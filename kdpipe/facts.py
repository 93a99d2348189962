"""What the file of a method or network says of itself: its docstring, parameters and literals.

``kdpipe list --json`` of both and the pages of ``kdpipe docs`` are made from this; the source is
read, not imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from kdpipe import discover
from kdpipe.errors import ConfigError

#: sections that the docstring of a method holds, in this order
SECTIONS = ("Paper", "Idea", "Equation", "Taps", "Provenance", "Deviations")
#: where a fact comes from: the paper's text, public code, or our own decision
MARKS = ("stated", "code", "ours")


def method_facts(name: str) -> dict[str, Any]:
    """Return everything that is known of a method without running it.

    Raises:
        ConfigError: no such method, or its docstring lacks a section or has an unknown mark.
    """
    sections = _sections(name)
    return {
        "name": name,
        "summary": discover.summary("methods", name),
        "reading": discover.attribute("methods", name, "is_reading", False),
        "needs_teacher": discover.needs_teacher(name),
        "past_self": discover.attribute("methods", name, "past_self", False),
        "floor": discover.attribute("methods", name, "floor", 0.0),
        "least_classes": discover.attribute("methods", name, "least_classes", 2),
        **{section.lower(): sections[section] for section in SECTIONS if section != "Provenance"},
        "provenance": list(_provenance(name, sections["Provenance"])),
        "params": discover.describe_params("methods", name),
    }


def network_facts(name: str) -> dict[str, Any]:
    """Return everything that is known of a network without building it.

    Raises:
        ConfigError: no such network.
    """
    summary, _, text = discover.docstring("nets", name).partition("\n")
    return {
        "name": name,
        "summary": summary,
        "text": text.strip(),
        "dims": list(discover.constant("nets", name, "DIMS", (2, 3))),
        "trained": discover.constant("nets", name, "TRAINED", False),
        "params": discover.describe_params("nets", name),
    }


def _sections(name: str) -> dict[str, str]:
    text = discover.docstring("methods", name)
    pieces = re.split(rf"^({'|'.join(SECTIONS)}):[ \n]", text, flags=re.MULTILINE)
    found = dict(zip(pieces[1::2], (piece.strip() for piece in pieces[2::2]), strict=True))
    if list(found) != list(SECTIONS) or not all(found.values()):
        raise ConfigError(
            f"{discover.source('methods', name)}: the docstring needs the sections "
            f"{', '.join(SECTIONS)}, each with text and in this order; found {', '.join(found)}"
        )
    return found


def _provenance(name: str, text: str) -> Iterator[dict[str, str]]:
    for item in re.split(r"^- ", text, flags=re.MULTILINE)[1:]:
        mark, _, said = item.partition(":")
        if mark not in MARKS or not said.strip():
            raise ConfigError(
                f"{discover.source('methods', name)}: Provenance: each item is '- MARK: text' with "
                f"one of the marks {', '.join(MARKS)}; found {item.strip()!r}"
            )
        yield {"mark": mark, "text": " ".join(said.split())}
