"""The report on a data set for people: one HTML page that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdpipe.data.checks.case_facts import Facts
from kdpipe.data.checks.findings import CODES, LEVELS, Finding, count_levels
from kdpipe.data.checks.thumbnails import colour_of, draw_case
from kdpipe.data.preparation.fingerprint import describe
from kdpipe.data.store import StoredCase
from kdpipe.labels import Labels
from kdpipe.rules import Rules

N_SHOWN = 6
"""Cases with pictures."""
N_LISTED = 25
"""Findings of one kind that are written out; the table has them all."""
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#1b1f24;max-width:64rem;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;margin:.5rem 0}
th,td{text-align:left;padding:.2rem .8rem .2rem 0;border-bottom:1px solid #dfe3e8;
vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.tag{display:inline-block;min-width:4.2rem;padding:0 .4rem;border-radius:3px;color:#fff;
text-align:center}
.error{background:#b3261e}.warning{background:#8a5a00}.info{background:#33658a}
.waived{background:#5f6b76}.none{background:#1d7a3e}
.chip{display:inline-block;width:.8rem;height:.8rem;margin-right:.4rem;border-radius:2px}
details{margin:.3rem 0}summary{cursor:pointer}ul{margin:.3rem 0 .6rem}
figure{display:inline-block;margin:.3rem .8rem .3rem 0;vertical-align:top}
figcaption,.note{color:#57606a;font-size:.87rem}img{background:#000;display:block}
"""


class Contents(NamedTuple):
    """What a report tells.

    Attributes:
        rules: names of the data set, and whether images may be shown.
        labels: ids and names.
        channels: names of the channels.
        subjects: patient of each case that was found.
        geometries: `geometry.json` of each prepared case.
        findings: in the order in which they are shown.
    """

    rules: Rules
    labels: Labels
    channels: Sequence[str]
    subjects: Sequence[str]
    geometries: Mapping[str, Facts]
    findings: Sequence[Finding]


def render_report(contents: Contents, store: Path) -> str:
    """Return the page. `store` has the prepared cases; a few are read, one at a time."""
    rules = contents.rules
    parts = [_verdict(contents), _counts(contents)]
    if contents.geometries:
        parts += [_fingerprint(contents), _structures(contents)]
    parts += [_findings(contents.findings)]
    if contents.geometries:
        parts += [_pictures(contents, store)]
    title = escape(rules.dataset)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<style>{_STYLE}</style></head><body>\n<h1>{title}</h1>\n"
        f'<p class="note">{escape(rules.title)}</p>\n' + "\n".join(parts) + "\n</body></html>\n"
    )


def _verdict(contents: Contents) -> str:
    stops = sum(finding.stops for finding in contents.findings)
    if stops:
        some = "1 error stops" if stops == 1 else f"{stops} errors stop"
        return f'<p><span class="tag error">stop</span> {some} the preparation.</p>'
    return '<p><span class="tag none">pass</span> Nothing stops the preparation.</p>'


def _counts(contents: Contents) -> str:
    excluded = len({f.case for f in contents.findings if f.case in contents.rules.excluded})
    rows = [
        ("cases found", len(contents.subjects)),
        ("patients", len(set(contents.subjects))),
        ("cases prepared", len(contents.geometries)),
        ("cases excluded by the card", excluded),
        *((f"findings: {name}", n) for name, n in count_levels(contents.findings).items()),
    ]
    return "<h2>Counts</h2>\n" + _table((), rows)


def _fingerprint(contents: Contents) -> str:
    found = describe(list(contents.geometries.values()), contents.labels, contents.channels)
    unit = "mm" if contents.rules.has_spacing else "pixels, of unknown size"
    names = {
        "native_shape": "shape, voxels",
        "native_spacing": f"spacing, {unit}",
        "prepared_shape": "prepared shape, voxels",
        "prepared_spacing": f"prepared spacing, {unit}",
    }
    rows = [
        (name, *(_by(found[key][kind]) for kind in ("median", "min", "max")))
        for key, name in names.items()
    ]
    for channel, summary in found["foreground_intensity"].items():
        for key in ("p0.5", "p50", "p99.5"):
            if key in summary:
                ranges = (_number(summary[key][kind]) for kind in ("median", "min", "max"))
                rows.append((f"{channel} under the labels, {key}", *ranges))
    axes = ", ".join(f"{axes} {n}" for axes, n in sorted(found["native_orientation"].items()))
    table = _table(("over the cases", "median", "min", "max"), rows)
    return f"<h2>Fingerprint</h2>\n{table}\n<p>Orientation of the axes: {escape(axes)}</p>"


def _structures(contents: Contents) -> str:
    unit = "mL" if contents.rules.has_spacing else "voxels"
    key = "ml" if contents.rules.has_spacing else "voxels"
    total = len(contents.geometries)
    rows = []
    for name, index in contents.labels.structures.items():
        shown = [
            facts["facts"]["structures"][name]
            for facts in contents.geometries.values()
            if name in facts["facts"]["structures"]
        ]
        sizes = [structure[key] for structure in shown]
        ranges = [_number(f(sizes)) for f in (np.median, min, max)] if sizes else [""] * 3
        cut = sum(bool(structure["touches"]) for structure in shown)
        rows.append((_Html(_chip(index) + escape(name)), index, f"{len(shown)}/{total}", *ranges,
                     cut))  # fmt: skip
    head = ("structure", "id", "cases", f"median, {unit}", "min", "max", "cut by the border")
    return "<h2>Structures</h2>\n" + _table(head, rows)


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return "<h2>Findings</h2>\n<p>None.</p>"
    parts = ["<h2>Findings</h2>"]
    order = sorted(findings, key=_kind)
    for (waived, level, code), group in groupby(order, key=_kind):
        members = list(group)
        tags = f'<span class="tag {LEVELS[level]}">{LEVELS[level]}</span>'
        if waived:
            tags += ' <span class="tag waived">waived</span>'
        parts.append(
            f"<details{' open' if level == 0 else ''}><summary>{tags} {code} "
            f"{escape(CODES.get(code, ''))}: {len(members)}</summary>"
        )
        if waived:
            parts.append(f'<p class="note">Accepted by the card: {escape(waived)}</p>')
        items = "".join(f"<li>{_item(finding)}</li>" for finding in members[:N_LISTED])
        rest = len(members) - N_LISTED
        more = f"<li>and {rest} more, see integrity.tsv</li>" if rest > 0 else ""
        parts.append(f"<ul>{items}{more}</ul></details>")
    return "\n".join(parts)


def _kind(finding: Finding) -> tuple[str, int, str]:
    return finding.waived, LEVELS.index(finding.level), finding.code


def _item(finding: Finding) -> str:
    where = ", ".join(filter(None, (finding.case, finding.file)))
    return (f"<b>{escape(where)}</b>: " if where else "") + escape(finding.text)


def _pictures(contents: Contents, store: Path) -> str:
    if not contents.rules.pictures:
        return (
            '<h2>Cases</h2>\n<p class="note">Who gives out this data set wants to know who has it, '
            "so no image of it is shown here.</p>"
        )
    legend = " &nbsp; ".join(
        _chip(index) + escape(name) for name, index in contents.labels.structures.items()
    )
    parts = [f"<h2>Cases</h2>\n<p>{legend}</p>"]
    for case in _chosen(contents):
        planes = draw_case(StoredCase(store / case))
        figures = "".join(_figure(plane, png, case) for plane, png in planes.items())
        parts.append(f"<div><b>{escape(case)}</b><br>{figures}</div>")
    note = (
        "Prepared images. The patient's right is on the left; a sagittal slice has the front on "
        "the left."
    )
    return "\n".join(parts) + f'\n<p class="note">{note}</p>'


def _chosen(contents: Contents) -> list[str]:
    """Choose the cases to show: those with errors first, then some evenly over the data set."""
    there = sorted(contents.geometries)
    odd = [
        f.case for f in contents.findings if f.level == "error" and f.case in contents.geometries
    ]
    even = [there[i] for i in np.linspace(0, len(there) - 1, N_SHOWN).astype(int)]
    return list(dict.fromkeys([*odd, *even]))[:N_SHOWN]


def _figure(plane: str, png: bytes, case: str) -> str:
    source = base64.b64encode(png).decode()
    return (
        f'<figure><img alt="{escape(case)}, {plane}" src="data:image/png;base64,{source}">'
        f"<figcaption>{plane}</figcaption></figure>"
    )


class _Html(str):
    """Text that is HTML already."""


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["<table>"]
    if head:
        lines.append("<tr>" + "".join(_cells("th", head)) + "</tr>")
    lines += ["<tr>" + "".join(_cells("td", row)) + "</tr>" for row in rows]
    return "\n".join([*lines, "</table>"])


def _cells(tag: str, row: Sequence[Any]) -> Iterator[str]:
    for number, value in enumerate(row):
        text = value if isinstance(value, _Html) else escape(str(value))
        yield f"<{tag}>{text}</{tag}>" if number == 0 else f'<{tag} class="n">{text}</{tag}>'


def _chip(index: int) -> str:
    red, green, blue = colour_of(index)
    return f'<span class="chip" style="background:rgb({red},{green},{blue})"></span>'


def _by(values: Sequence[float]) -> str:
    return " x ".join(map(_number, values))


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 10000 else f"{value:.0f}"
