"""Outlines of structures and of errors on a panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D

from kdpipe.colours import GREEN, ORANGE, PURPLE, SKY, VERMILLION, WHITE, YELLOW

Masks = Mapping[str, np.ndarray]
Style = tuple[str, Any]
"""Colour and dashes of a line."""

#: those that are seen on grey images, but for the one of errors
_COLOURS = (SKY, ORANGE, GREEN, YELLOW, PURPLE)
_DASHES = ("-", (0, (3.0, 1.2)), (0, (1.0, 1.0)), (0, (5.0, 1.2, 1.0, 1.2)))
_MISSED, _FALSE = VERMILLION, WHITE
#: kind of error -> what the legend says, lines over each other
_ERRORS: dict[str, tuple[str, Sequence[Style]]] = {
    "missed": ("error: missed", [(_MISSED, "-")]),
    "false": ("error: false", [(_FALSE, "-")]),
    "other": ("error: another structure", [(_FALSE, "-"), (_MISSED, (0, (2.0, 2.0)))]),
}
_LINE, _THIN, _SAMPLE = 1.1, 0.9, 1.8  # points: structures, errors, in the legend
_LARGEST_INSET = 0.2  # voxels
_PER_INCH = 72  # points


def styles_of(structures: Sequence[str]) -> dict[str, Style]:
    """Give each structure a colour, and dashes once the colours are used up."""
    n = len(_COLOURS)
    return {
        name: (_COLOURS[i % n], _DASHES[i // n % len(_DASHES)]) for i, name in enumerate(structures)
    }


def errors_of(reference: Masks, predicted: Masks) -> dict[str, np.ndarray]:
    """Return the voxels that are missed, false, and in another structure than they should be."""
    missed = np.any([reference[name] & ~predicted[name] for name in reference], axis=0)
    false = np.any([predicted[name] & ~reference[name] for name in reference], axis=0)
    return {"missed": missed & ~false, "false": false & ~missed, "other": missed & false}


def draw_structures(
    axes: Axes, masks: Masks, spacing: tuple[float, float], styles: Mapping[str, Style]
) -> None:
    """Draw each structure's boundary, larger ones first so that nested ones stay seen.

    A line lies within its structure and touches the boundary, as two structures that share one
    would else hide each other.

    Args:
        axes: of a panel, its x and y in mm (or voxels) from the upper left corner.
        masks: (rows, columns) of what the panel shows.
        spacing: mm down and across.
        styles: structure -> colour and dashes.
    """
    down, across = spacing
    present = [name for name, mask in masks.items() if mask.any()]
    for name in sorted(present, key=lambda name: -int(masks[name].sum())):
        mask = np.pad(masks[name], 1).astype(np.float32)
        rows, columns = (np.arange(n) - 0.5 for n in mask.shape)
        colour, dashes = styles[name]
        lines = axes.contour(
            columns * across,
            rows * down,
            mask,
            levels=[0.5 + min(_LINE / 2 / _points_a_voxel(axes, across), _LARGEST_INSET)],
            colors=[colour],
            linewidths=_LINE,
            linestyles=[dashes],
        )
        lines.set_path_effects([casing(_LINE)])


def draw_errors(axes: Axes, errors: Masks, spacing: tuple[float, float]) -> None:
    """Draw the edges of the voxels that `errors_of` found, as they are."""
    for kind, (_, lines) in _ERRORS.items():
        segments = _edges(errors[kind], spacing)
        for colour, dashes in lines:
            axes.add_collection(
                LineCollection(segments, colors=colour, linewidths=_THIN, linestyles=[dashes])
            )


def legend_entries(
    labelled: Sequence[Masks], errors: Sequence[Masks], styles: Mapping[str, Style]
) -> dict[str, tuple[Line2D, ...]]:
    """Return label -> lines over each other, of only what is on the panels."""
    entries: dict[str, tuple[Line2D, ...]] = {
        name: (Line2D([], [], color=colour, linestyle=dashes, linewidth=_SAMPLE),)
        for name, (colour, dashes) in styles.items()
        if any(masks[name].any() for masks in labelled)
    }
    for kind, (label, lines) in _ERRORS.items():
        if any(found[kind].any() for found in errors):
            drawn = [Line2D([], [], color=c, linestyle=d, linewidth=_SAMPLE) for c, d in lines]
            drawn[0].set_path_effects([casing(_SAMPLE)])
            entries[label] = tuple(drawn)
    return entries or {"nothing is labelled here": (Line2D([], [], linestyle="none"),)}


def _points_a_voxel(axes: Axes, across: float) -> float:
    width: float = axes.get_window_extent().width * _PER_INCH / axes.figure.dpi
    return width * across / abs(float(np.ptp(axes.get_xlim())))


def _edges(mask: np.ndarray, spacing: tuple[float, float]) -> list[np.ndarray]:
    """Return the edges between voxels in and out of a mask, as segments (2, 2) of x and y in mm."""
    padded = np.pad(mask, 1)
    steps = np.array(spacing[::-1])
    across = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])[:, ::-1]  # x, y of left ends
    down = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])[:, ::-1]
    segments = [np.stack((at, at + step), 1) for at, step in ((across, (1, 0)), (down, (0, 1)))]
    return list(np.concatenate(segments) * steps)


def casing(width: float) -> patheffects.withStroke:
    """A dark rim that keeps a line seen on bright tissue."""
    return patheffects.withStroke(linewidth=width + 0.8, foreground="black", alpha=0.55)
