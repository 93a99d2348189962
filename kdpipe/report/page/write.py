"""The report of a study: one HTML file that opens without a network.

Templates, style and script lie in ``kdpipe/templates/report.*``; everything, pictures and scores
too, is put into the file. A content security policy forbids the page to ask anything of a server,
and to run any script but its own, whose digest it names. Jinja escapes all that comes from data.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from kdpipe.atomic import write_text
from kdpipe.provenance import PACKAGE
from kdpipe.report.page.answer import answers
from kdpipe.report.page.cautions import cautions
from kdpipe.report.page.decisions import BAR, decision_tables
from kdpipe.report.page.inputs import Inputs, Picture, read_inputs
from kdpipe.report.page.packing import pack
from kdpipe.report.page.provenance import claim_text, provenance
from kdpipe.report.page.tables import (
    power_table,
    rank_tables,
    reference_table,
    result_tables,
)

_TEMPLATES = PACKAGE / "templates"


def write_report(
    run: dict[str, Any], tables: Path, figures: Path, overlays: Path, out: Path
) -> None:
    """Write the report of a study.

    Parts whose files are not there say so; the page is written all the same.

    Args:
        run: ``run.json`` of the study: name, cells with their folders and keys, data sets,
            entries, protocols, statistics, training.
        tables: folder with the CSV files and ``claim.json``.
        figures: folder with ``figures.json`` and what it lists.
        overlays: folder with ``overlays.json`` and what it lists.
        out: HTML file to write.

    Raises:
        DataError: a table, an index, a picture or a JSON file is there and cannot be read.
    """
    write_text(out, render_page(read_inputs(run, tables, figures, overlays)))


def render_page(inputs: Inputs) -> str:
    """Return the page.

    Raises:
        DataError: a JSON file of a cell or a split cannot be read.
    """
    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    style = (_TEMPLATES / "report.css").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        study=inputs.run["study"],
        style=_inline(style),
        script=_inline(script),
        script_digest=_digest(script),
        answers=answers(inputs),
        cautions=cautions(inputs),
        power=power_table(inputs),
        results=result_tables(inputs),
        decisions=decision_tables(inputs),
        comparisons=_large(inputs.comparisons),
        bar=BAR,
        ranks=rank_tables(inputs),
        references=reference_table(inputs),
        figures=_grouped(inputs.figures),
        overlays=inputs.overlays,
        scores=_large(inputs.scores),
        provenance=provenance(inputs),
        claim=claim_text(inputs.claim),
    )


def _inline(text: str) -> Markup:
    """Mark own style or script as safe: it goes into the page as it stands, or its digest fails."""
    assert "</" not in text, "an element would end there"
    return Markup(text)


def _digest(script: str) -> str:
    """The script's SHA-256 as a content security policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _large(table: pd.DataFrame) -> dict[str, Any]:
    return {"rows": len(table), "packed": pack(table) if len(table) else ""}


def _grouped(pictures: list[Picture]) -> dict[str, list[Picture]]:
    """Group -> pictures, in the order in which the groups first appear."""
    groups: dict[str, list[Picture]] = {}
    for picture in pictures:
        groups.setdefault(picture.group or "Figures", []).append(picture)
    return groups
