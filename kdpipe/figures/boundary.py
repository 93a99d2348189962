"""Gain over the undistilled student by the distance from the reference's boundary."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdpipe.colours import BLACK, BLUE, VERMILLION
from kdpipe.figures.drawing import (
    Drawing,
    leave_out,
    mean_interval,
    pages,
    panel_title,
    slug,
    small_multiples,
)
from kdpipe.figures.keys import Arm, Group, Measure
from kdpipe.figures.study import StudyData, main_structure
from kdpipe.protocols import BANDS

_PANELS = 20
#: as `kdpipe.metrics.bands.band_names` names them
_NAME = re.compile(r"error_(?P<side>in|out)_(?P<near>[\d.]+)_(?P<far>[\d.]+|up)")


@dataclass(frozen=True)
class Band:
    """Voxels at a distance from the boundary; inside the reference is negative."""

    metric: str
    inside: bool
    near: float
    far: str

    @property
    def place(self) -> float:
        """Sorts from deep inside to far outside."""
        return -self.near - 1e-6 if self.inside else self.near

    @property
    def label(self) -> str:
        """Its distances."""
        return f"{self.near:g}–{self.far}" if self.far else f">{self.near:g}"


def draw(study: StudyData) -> Iterator[Drawing]:
    """Yield a drawing a group and page of arms."""
    for group in study.groups:
        bands = _bands(study, group)
        gains = _gains(study, group, bands)
        if gains.empty:
            why = f"no pair with none is scored by the protocol {BANDS}"
            leave_out("gain by distance", str(group), why)
            continue
        there = set(gains["arm"])
        arms = [arm for arm in study.arms(group) if arm in there]
        for page in pages(arms, _PANELS, multiple=4):
            yield Drawing(
                slug("boundary", group.dataset, group.split, group.student, page.suffix),
                f"Gain by distance from the boundary: {group}{page.note}",
                _caption(study, group, gains),
                "Where it helps",
                _figure(study, group, gains, bands, page.items),
            )


def _bands(study: StudyData, group: Group) -> list[Band]:
    rows = study.rows_of(group)
    names = rows.loc[rows["protocol"] == BANDS, "metric"].unique()
    found = []
    for name in names:
        if match := _NAME.fullmatch(name):
            far = "" if match["far"] == "up" else match["far"]
            found.append(Band(name, match["side"] == "in", float(match["near"]), far))
    return sorted(found, key=lambda band: band.place)


def _gains(study: StudyData, group: Group, bands: Sequence[Band]) -> pd.DataFrame:
    """Rows of `StudyData.gains` over the mean of structures, with the column ``band``."""
    tables = []
    for band in bands:
        rows = study.gains(group, Measure(band.metric, BANDS, "fraction", -1))
        rows = rows[rows["structure"] == main_structure(rows)]
        tables.append(rows.assign(band=band.metric))
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    return table[np.isfinite(table["gain"])] if len(table) else table


def _caption(study: StudyData, group: Group, gains: pd.DataFrame) -> str:
    arms = list(gains["arm"].unique())
    return (
        "Where an arm labels better than the undistilled student: share of wrongly labelled "
        "voxels of the undistilled student minus that of the arm (points), by distance from the "
        "boundary of the reference (mm; left of the dashed line inside the structure, right of it "
        "outside). Above the zero line the arm makes fewer errors there. Mean over the structures "
        "of a case, its seeds, then cases, with "
        f"{study.confidence:.0%} t intervals over cases. Bands hold unlike numbers of voxels; the "
        f"nearest ones count most for Dice. {study.sample(group)}{study.notes(arms)}"
    )


def _figure(
    study: StudyData, group: Group, gains: pd.DataFrame, bands: list[Band], arms: list[Arm]
) -> Figure:
    figure, panels, lowest = small_multiples(len(arms), panel=1.5)
    for axes, arm in zip(panels, arms, strict=True):
        _panel(axes, gains[gains["arm"] == arm], bands, study.confidence)
        axes.set_title(panel_title(study.label(arm, group)), fontsize=7.5)
    for axes in lowest:
        axes.set_xticks(range(len(bands)), [band.label for band in bands], rotation=90)
    figure.supxlabel("distance from the boundary (mm): inside | outside", fontsize=7.5)
    figure.supylabel("fewer errors (points)", fontsize=7.5)
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, bands: list[Band], confidence: float) -> None:
    axes.axhline(0, color=BLACK, lw=0.7, zorder=1)
    axes.axvline(sum(band.inside for band in bands) - 0.5, color=BLACK, lw=0.7, ls="--", zorder=1)
    axes.grid(visible=False, axis="x")
    for index, band in enumerate(bands):
        values = rows.loc[rows["band"] == band.metric, "gain"].to_numpy()
        mean, low, high = mean_interval(values, confidence)
        colour = BLUE if mean >= 0 else VERMILLION
        axes.bar(index, mean, width=0.7, color=colour, alpha=0.75, zorder=2)
        axes.vlines(index, low, high, color=BLACK, lw=0.9, zorder=3)
