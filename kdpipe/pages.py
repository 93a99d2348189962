"""The documentation pages of the methods, one a method and an index, made from `kdpipe.facts`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from kdpipe import discover
from kdpipe.atomic import write_text
from kdpipe.facts import method_facts

READING = (
    "**This is a reading of the paper, not a reproduction**: its full text could not be had. "
    "The marks below say what is stated, what was read from code, and what is ours."
)
_MARKS = {"stated": "stated in the paper", "code": "read from public code", "ours": "ours"}


def write_pages(out: Path) -> list[Path]:
    """Write ``<method>.md`` for each method and ``index.md`` into `out`; return the files."""
    facts = [method_facts(name) for name in discover.names("methods")]
    written = []
    for text, name in [(method_page(fact), fact["name"]) for fact in facts] + [
        (index_page(facts), "index")
    ]:
        written.append(out / f"{name}.md")
        write_text(written[-1], text)
    return written


def method_page(facts: dict[str, Any]) -> str:
    """Return the page of one method as Markdown."""
    blocks = [f"# {facts['name']}", _prose(facts["summary"])]
    if facts["reading"]:
        blocks.append(READING)
    blocks += [
        f"**Paper.** {_prose(facts['paper'])}",
        f"**Learns from** {_learns_from(facts)}.",
        "## Idea",
        _prose(facts["idea"]),
        "## Equation",
        _mathematics(facts["equation"]),
        "## Taps",
        _prose(facts["taps"]),
        "## Parameters",
        _parameters(facts["params"]),
        "## Where it comes from",
        "\n".join(f"- *{_MARKS[i['mark']]}*: {_prose(i['text'])}" for i in facts["provenance"]),
        "## What deviates",
        _prose(facts["deviations"]),
    ]
    return "\n\n".join(blocks) + "\n"


def index_page(facts: list[dict[str, Any]]) -> str:
    """Return the table of all methods as Markdown."""
    rows = [
        f"| [{fact['name']}]({fact['name']}.md) | {_cell(fact['summary'])} "
        f"| {_learns_from(fact)} | {'reading' if fact['reading'] else ''} |"
        for fact in facts
    ]
    head = "| method | in a line | learns from | |\n|---|---|---|---|"
    return f"# Methods\n\n{head}\n" + "\n".join(rows) + "\n"


def _learns_from(facts: dict[str, Any]) -> str:
    if facts["past_self"]:
        return "the student of the epoch before"
    if facts["name"] == "sum":
        return "what its parts learn from"
    return "a trained teacher" if facts["needs_teacher"] else "the student and the labels alone"


def _parameters(params: dict[str, dict[str, Any]]) -> str:
    if not params:
        return "None."
    rows = [
        f"| `{name}` | {_cell(fact['type'])} | `{fact['default']}` | {_meaning(name, fact)} |"
        for name, fact in params.items()
    ]
    return "| name | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows)


def _meaning(name: str, fact: dict[str, Any]) -> str:
    if name.startswith("weight") and not fact["description"]:
        return f"weight of the term{' ' + name.removeprefix('weight_') if '_' in name else ''}"
    return _cell(fact["description"])


def _cell(text: str) -> str:
    return _prose(text).replace("|", r"\|")


def _prose(text: str) -> str:
    """Paragraphs in Markdown: double backticks become single ones, lines are joined."""
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n\n".join(" ".join(p.split()).replace("``", "`") for p in paragraphs)


def _mathematics(text: str) -> str:
    """The equation's ``.. math::`` blocks as Markdown, other paragraphs as prose."""
    pieces = re.split(r"^\.\. math::\n\n((?:    .*\n?|\n)+)", text, flags=re.MULTILINE)
    prose = [_prose(piece) for piece in pieces[::2]]
    equations = [_formulas(piece) for piece in pieces[1::2]] + [""]
    blocks = [block for pair in zip(prose, equations, strict=True) for block in pair]
    return "\n\n".join(filter(None, blocks))


def _formulas(text: str) -> str:
    """A block of mathematics for each paragraph."""
    formulas = [
        "\n".join(line.strip() for line in formula.splitlines())
        for formula in re.split(r"\n\s*\n", text.strip())
    ]
    return "\n\n".join(f"```math\n{formula}\n```" for formula in formulas)
