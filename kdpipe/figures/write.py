"""Draw all figures of a study."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

from kdpipe.atomic import atomic_folder, check_replaceable, write_json
from kdpipe.figures import (
    boundary,
    curves,
    differences,
    frontier,
    missed,
    ranks,
    scores,
    size,
    terms,
)
from kdpipe.figures.drawing import Draw, Drawing
from kdpipe.figures.study import StudyData
from kdpipe.figures.style import RC, save

logger = logging.getLogger(__name__)
INDEX = "figures.json"

#: in the order of a report
FIGURES: tuple[Draw, ...] = (
    differences.draw,
    scores.draw,
    ranks.draw,
    frontier.draw,
    missed.draw,
    size.draw,
    boundary.draw,
    curves.draw,
    terms.draw,
)


def write_figures(run: dict[str, Any], tables: Path, out: Path) -> None:
    """Write ``<name>.svg`` and ``<name>.png`` of every figure, and ``figures.json``.

    The folder appears when all are done. The index lists name, title, caption and group in the
    order of a report. What a study cannot show is left out, with the reason in the log.

    Args:
        run: the study's ``run.json``; each cell's folder holds a ``train.csv``.
        tables: folder of ``scores.csv``, ``results.csv``, ``comparisons.csv`` and ``ranks.csv``.
        out: folder to write; replaced if it exists.

    Raises:
        ConfigError: `out` holds something else.
        DataError: a table cannot be read.
    """
    check_replaceable(out, lambda names: INDEX in names)
    study = StudyData(run, tables)
    with atomic_folder(out) as temporary:
        index: list[dict[str, str]] = []
        for drawing in draw_all(study):
            name = _unused(drawing.name, {entry["name"] for entry in index})
            save(drawing.figure, temporary / name)
            facts = {"title": drawing.title, "caption": drawing.caption, "group": drawing.group}
            index.append({"name": name, **facts})
            logger.info("%s: %s", name, drawing.title)
        write_json(temporary / INDEX, index)


def draw_all(study: StudyData) -> Iterator[Drawing]:
    """Yield every drawing of a study, in the order of a report."""
    with matplotlib.rc_context(RC):
        for draw in FIGURES:
            yield from draw(study)


def _unused(name: str, taken: set[str]) -> str:
    """`name`, with a number where two labels differ only by what a file name cannot hold."""
    candidate, number = name, 2
    while candidate.lower() in {other.lower() for other in taken}:
        candidate, number = f"{name}-{number}", number + 1
    return candidate
