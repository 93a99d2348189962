"""One picture of a slice: a column for each label map, its outlines above its errors."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from kdpipe.overlays.outlines import (
    Masks,
    Style,
    casing,
    draw_errors,
    draw_structures,
    errors_of,
    legend_entries,
)
from kdpipe.overlays.slices import Frame

_DPI = 200
_PANEL = 1.5  # width, inches
_GAP, _TITLE_LINE, _LEGEND_ROW, _MARGIN = 0.06, 0.13, 0.17, 0.08  # inches
_DIM = 0.55  # of the image under the errors
_TEXT = 7.0  # points
_BARS = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Column:
    """One label map: its title, and for each structure its mask of the whole slice."""

    title: str
    masks: Masks


@dataclass(frozen=True)
class Picture:
    """What is drawn.

    Attributes:
        image: whole slice, (rows, columns) grey or (rows, columns, 3), in [0, 1].
        channel: name of what it shows.
        spacing: mm down and across.
        in_mm: whether the spacing is known.
        edges: patient's side on the left and at the top, or empty.
        reference: masks of the reference.
        columns: label maps that are compared with it.
        frame: what is shown; None for the whole slice.
        notes: lines of text beside the panels.
        styles: structure -> colour and dashes.
    """

    image: np.ndarray
    channel: str
    spacing: tuple[float, float]
    in_mm: bool
    edges: tuple[str, ...]
    reference: Masks
    columns: Sequence[Column]
    frame: Frame | None
    notes: Sequence[str]
    styles: Mapping[str, Style]


def draw(picture: Picture, file: Path) -> None:
    """Write the picture as PNG."""
    whole = Frame(*(slice(0, size) for size in picture.image.shape[:2]))
    frame = picture.frame or whole
    masks = [
        {name: frame.of(mask) for name, mask in found.items()}
        for found in (picture.reference, *(column.masks for column in picture.columns))
    ]
    errors = [errors_of(masks[0], predicted) for predicted in masks[1:]]
    sheet = _Sheet.of(picture, frame, legend_entries(masks, errors, picture.styles))
    titles = ["Reference", *(column.title for column in picture.columns)]
    for number, (title, labelled) in enumerate(zip(titles, masks, strict=True), 1):
        axes = sheet.panel(0, number)
        _show(axes, picture, frame)
        _title(axes, title)
        draw_structures(axes, labelled, picture.spacing, picture.styles)
    for number, found in enumerate(errors, 2):
        axes = sheet.panel(1, number)
        _show(axes, picture, frame, _DIM)
        draw_errors(axes, found, picture.spacing)
    _draw_image(sheet.panel(0, 0), picture, frame)
    beside = sheet.panel(1, 1)
    beside.text(0.97, 0.5, "Errors", rotation=90, ha="right", va="center", fontsize=_TEXT)
    below = sheet.panel(1, 0)
    if picture.frame is not None:
        _context(below, picture, whole, frame)
    _note(below if picture.frame is None else beside, picture.notes)
    sheet.figure.savefig(file, format="png", dpi=_DPI)


@dataclass(frozen=True)
class _Sheet:
    """A figure of two rows of panels above a legend; lengths in inches."""

    figure: Figure
    height: float  # of a panel
    legend: float

    @classmethod
    def of(
        cls, picture: Picture, frame: Frame, entries: Mapping[Any, tuple[Line2D, ...]]
    ) -> _Sheet:
        """Lay out the panels of `frame` and draw the legend."""
        rows, columns = frame.of(picture.image).shape[:2]
        down, across = picture.spacing
        height = _PANEL * (rows * down) / (columns * across)
        n = len(picture.columns) + 2
        width = 2 * _MARGIN + n * _PANEL + (n - 1) * _GAP
        per_row = max(1, int(width / (0.5 + 0.055 * max(map(len, entries)))))
        legend = -(-len(entries) // per_row) * _LEGEND_ROW + 2 * _MARGIN
        lines = max(len(_wrapped(column.title)) for column in picture.columns)
        size = (width, legend + 2 * height + _GAP + lines * _TITLE_LINE + 2 * _MARGIN)
        figure = Figure(figsize=size, dpi=_DPI, facecolor="white")
        FigureCanvasAgg(figure)
        samples: list[Any] = list(entries.values())  # Matplotlib's types know single ones alone
        figure.legend(
            samples,
            list(entries),
            handler_map={tuple: HandlerTuple(ndivide=1)},
            loc="lower center",
            ncols=min(per_row, len(entries)),
            fontsize=_TEXT,
            frameon=False,
            handlelength=2.4,
            borderaxespad=0.3,
            columnspacing=1.5,
            labelspacing=0.3,
        )
        return cls(figure, height, legend)

    def panel(self, row: int, column: int) -> Axes:
        """Add the axes of a panel; row 0 is the upper one."""
        width, total = self.figure.get_size_inches()
        left = _MARGIN + column * (_PANEL + _GAP)
        bottom = self.legend + (1 - row) * (self.height + _GAP)
        box = (left / width, bottom / total, _PANEL / width, self.height / total)
        axes: Axes = self.figure.add_axes(box)
        axes.set_axis_off()
        return axes


def _draw_image(axes: Axes, picture: Picture, frame: Frame) -> None:
    """Show the slice alone, with the patient's sides and a scale."""
    _show(axes, picture, frame)
    _title(axes, f"Image ({picture.channel})" if picture.channel else "Image")
    _mark_edges(axes, picture.edges)
    if picture.in_mm:
        _scale_bar(axes, axes.get_xlim()[1])


def _show(axes: Axes, picture: Picture, frame: Frame, brightness: float = 1.0) -> None:
    plane = frame.of(picture.image) * brightness
    rows, columns = plane.shape[:2]
    down, across = picture.spacing
    finer = columns < _PANEL * _DPI
    axes.imshow(
        plane,
        cmap="gray",
        vmin=0.0,
        vmax=1.0,
        extent=(0.0, columns * across, rows * down, 0.0),
        interpolation="bicubic" if finer else "antialiased",
        aspect="equal",
    )
    axes.set_autoscale_on(False)  # lines that end at the border move no panel


def _title(axes: Axes, text: str) -> None:
    axes.set_title("\n".join(_wrapped(text)), fontsize=_TEXT, pad=3, linespacing=1.15)


def _wrapped(title: str) -> list[str]:
    return [line for part in title.split("\n") for line in textwrap.wrap(part, 24)]


def _context(axes: Axes, picture: Picture, whole: Frame, frame: Frame) -> None:
    """Show the whole slice with the frame."""
    _show(axes, picture, whole)
    axes.set_anchor("N")
    down, across = picture.spacing
    corner = (frame.columns.start * across, frame.rows.start * down)
    width = (frame.columns.stop - frame.columns.start) * across
    height = (frame.rows.stop - frame.rows.start) * down
    box = Rectangle(corner, width, height, fill=False, edgecolor="white", linewidth=0.9)
    box.set_path_effects([casing(0.9)])
    axes.add_patch(box)


def _mark_edges(axes: Axes, edges: tuple[str, ...]) -> None:
    places = ((0.02, 0.5, "left", "center"), (0.5, 0.98, "center", "top"))
    for text, (x, y, ha, va) in zip(edges, places, strict=False):
        axes.text(
            x, y, text, transform=axes.transAxes, ha=ha, va=va, color="white", fontsize=_TEXT
        ).set_path_effects([casing(0.8)])


def _scale_bar(axes: Axes, width: float) -> None:
    length = max((bar for bar in _BARS if bar <= 0.4 * width), default=None)
    if length is None:
        return
    end, where = 0.96, axes.get_xaxis_transform()  # x in mm, y as a share
    (bar,) = axes.plot(
        [end * width - length, end * width],
        [0.05, 0.05],
        transform=where,
        color="white",
        linewidth=1.6,
        solid_capstyle="butt",
        scalex=False,
        scaley=False,
    )
    bar.set_path_effects([casing(1.6)])
    axes.text(
        end * width - length / 2,
        0.07,
        f"{length} mm",
        transform=where,
        ha="center",
        va="bottom",
        color="white",
        fontsize=_TEXT - 1,
    ).set_path_effects([casing(0.8)])


def _note(axes: Axes, notes: Sequence[str]) -> None:
    lines = [line for note in notes for line in textwrap.wrap(note, 25)]
    axes.text(
        0.03,
        0.98,
        "\n".join(lines),
        transform=axes.transAxes,
        ha="left",
        va="top",
        fontsize=_TEXT,
        linespacing=1.3,
    )
