"""The documentation pages: one a method or network and an index of each, one of all data sets.

Methods and networks come from `kdpipe.facts`, data sets from their cards.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kdpipe import discover
from kdpipe.atomic import write_text
from kdpipe.cards import Card, card_files, load_card
from kdpipe.commands.published_page import published_page
from kdpipe.facts import method_facts, network_facts
from kdpipe.presets import Preset, Standardize, Window
from kdpipe.stats.literature import load_references

Facts = dict[str, Any]

READING = (
    "**This is a reading of the paper, not a reproduction**: its full text could not be had. "
    "The marks below say what is stated, what was read from code, and what is ours."
)
DATASETS = (
    "Numbers are only comparable within one split and one preset. A split that *selects on the "
    "test cases* chooses checkpoints on the cases that it reports, as its paper does. Each part of "
    "a card is *verified* (read at the source), *secondary* (read elsewhere) or from *memory*."
)
_COLUMNS = (
    *("data set", "title", "modality", "cases", "structures"),
    *("access", "licence", "splits", "presets"),
)
_TRAINED = "; comes with trained weights, for a teacher"
_MARKS = {"stated": "stated in the paper", "code": "read from public code", "ours": "ours"}


def write_pages(out: Path) -> list[Path]:
    """Write a page for each entry and an index into ``methods`` and ``networks`` below `out`.

    The data sets share the page ``datasets.md``, published tables the page ``published.md``.

    Returns:
        The two indices, then that of published tables and that of data sets.
    """
    methods = [method_facts(name) for name in discover.names("methods")]
    networks = [network_facts(name) for name in discover.names("nets")]
    datasets = out / "datasets.md"
    published = out / "published.md"
    write_text(datasets, dataset_page([load_card(name) for name in sorted(card_files())]))
    write_text(published, published_page(load_references()))
    return [
        _write(out / "methods", methods, method_page, method_index),
        _write(out / "networks", networks, network_page, network_index),
        published,
        datasets,
    ]


def _write(
    folder: Path,
    entries: list[Facts],
    page: Callable[[Facts], str],
    index: Callable[[list[Facts]], str],
) -> Path:
    for facts in entries:
        write_text(folder / f"{facts['name']}.md", page(facts))
    write_text(folder / "index.md", index(entries))
    return folder / "index.md"


def method_page(facts: Facts) -> str:
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


def method_index(facts: list[Facts]) -> str:
    """Return the table of all methods as Markdown."""
    rows = [
        (_link(f), _cell(f["summary"]), _learns_from(f), "reading" if f["reading"] else "")
        for f in facts
    ]
    return f"# Methods\n\n{_table(('method', 'in a line', 'learns from', ''), rows)}\n"


def network_page(facts: Facts) -> str:
    """Return the page of one network as Markdown."""
    blocks = [
        f"# {facts['name']}",
        _prose(facts["summary"]),
        f"**Is built for** {_dims(facts)}{_TRAINED if facts['trained'] else ''}.",
        _text(facts["text"]),
        "## Parameters",
        _parameters(facts["params"]),
    ]
    return "\n\n".join(blocks) + "\n"


def network_index(facts: list[Facts]) -> str:
    """Return the table of all networks as Markdown."""
    rows = [
        (_link(f), _cell(f["summary"]), _dims(f), "trained already" if f["trained"] else "")
        for f in facts
    ]
    return f"# Networks\n\n{_table(('network', 'in a line', 'for', ''), rows)}\n"


def dataset_page(cards: Sequence[Card]) -> str:
    """Return the page of all data sets as Markdown: a table, then a section for each."""
    blocks = ["# Data sets", DATASETS, _table(_COLUMNS, [_dataset_row(card) for card in cards])]
    return "\n\n".join([*blocks, *map(_dataset_section, cards)]) + "\n"


def _dataset_row(card: Card) -> tuple[str, ...]:
    return (
        f"[{card.id}](#{card.id})",
        _cell(card.title),
        card.modality,
        _n_cases(card),
        str(len(card.labels.scored)),
        card.access.mode,
        card.licence.spdx + (", gated" if card.licence.gated else ""),
        ", ".join(card.splits),
        ", ".join(card.presets),
    )


def _n_cases(card: Card) -> str:
    return str(card.generator.n_cases if card.generator else card.layout.n_cases or "")


def _dataset_section(card: Card) -> str:
    licence, source = card.licence, card.source
    facts = {
        "Structures": ", ".join(card.labels.scored),
        "Source": ", ".join(f"<{link}>" for link in (source.homepage, source.record) if link),
        "Made of": source.derived_from,
        "Cite": "; ".join(source.citation),
        "Print": source.required_text,
        "Licence": "; ".join(filter(None, (licence.spdx, licence.note))),
        "Disputed": licence.conflict,
        "Open data sets with like labels": ", ".join(card.access.alternatives),
        "Shares patients with": ", ".join(card.overlaps),
        "Scores": card.metrics.note,
        "Accepted": "; ".join(f"{w.code}, {w.reason}" for w in card.integrity.waivers),
        "Left out": "; ".join(e.reason for e in card.integrity.exclude),
    }
    blocks = [f"## {card.id}", f"{card.title}."]
    blocks.append("\n".join(f"- **{name}.** {text}" for name, text in facts.items() if text))
    rules = [(f"`{name}`", _split_rule(card, name)) for name in card.splits]
    blocks.append(_table(("split", "rule"), rules))
    presets = [(f"`{name}`", *_preset_row(preset)) for name, preset in card.presets.items()]
    blocks.append(_table(("preset", "axes", "spacing, mm", "intensity", "patch"), presets))
    if card.quirks:
        blocks.append("What to know:\n\n" + "\n".join(f"- {quirk}" for quirk in card.quirks))
    if card.evidence:
        sure = ", ".join(f"{part} {how}" for part, how in card.evidence.items())
        blocks.append(f"How sure this card is: {sure}.")
    return "\n\n".join(blocks)


def _split_rule(card: Card, name: str) -> str:
    rule = card.splits[name]
    warning = "selects on the test cases" if rule.selects_on_test else ""
    return _cell("; ".join(filter(None, (rule.kind, rule.note, warning))))


def _preset_row(preset: Preset) -> tuple[str, ...]:
    kinds = preset.intensity if isinstance(preset.intensity, tuple) else (preset.intensity,)
    intensities = [
        f"{kind.kind} {kind.low:g} to {kind.high:g}"
        if isinstance(kind, Window | Standardize)
        else kind.kind
        for kind in kinds
    ]
    steps = ["as stored" if step is None else f"{step:g}" for step in preset.spacing or (None,)]
    return (
        preset.orientation or "as stored",
        " x ".join(steps),
        ", ".join(intensities),
        " x ".join(map(str, preset.patch)),
    )


def _link(facts: Facts) -> str:
    return f"[{facts['name']}]({facts['name']}.md)"


def _dims(facts: Facts) -> str:
    return " and ".join(f"{dims}D" for dims in facts["dims"])


def _learns_from(facts: Facts) -> str:
    if facts["past_self"]:
        return "the student of the epoch before"
    if facts["name"] == "sum":
        return "what its parts learn from"
    return "a trained teacher" if facts["needs_teacher"] else "the student and the labels alone"


def _parameters(params: dict[str, Facts]) -> str:
    if not params:
        return "None."
    rows = [
        (f"`{name}`", _cell(fact["type"]), _default(fact), _cell(_meaning(name, fact)))
        for name, fact in params.items()
    ]
    return _table(("name", "type", "default", "meaning"), rows)


def _default(fact: Facts) -> str:
    return "required" if fact["required"] else f"`{fact['default']}`"


def _meaning(name: str, fact: Facts) -> str:
    if name.startswith("weight") and not fact["description"]:
        return f"weight of the term{' ' + name.removeprefix('weight_') if '_' in name else ''}"
    return str(fact["description"])


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"| {' | '.join(head)} |\n{'|---' * len(head)}|\n{lines}"


def _cell(text: str) -> str:
    return _prose(text).replace("|", r"\|")


def _text(text: str) -> str:
    """Paragraphs as prose; an indented one, behind ``::``, is a block of code."""
    return "\n\n".join(
        f"```python\n{textwrap.dedent(paragraph)}\n```"
        if paragraph.startswith("    ")
        else _prose(re.sub("::$", ":", paragraph))
        for paragraph in re.split(r"\n\s*?\n", text)
    )


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
