"""How names and numbers are written for readers: in tables, sentences, figures and the report.

A name or a unit that is said in two ways looks like two things. numpy and pandas are not needed: a
plan says what a study can show before they are imported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from kdpipe.markup import DAGGER
from kdpipe.paths import NO_TEACHER

_METRICS = {
    "dice": "Dice",
    "iou": "IoU",
    "hd95": "HD95",
    "hd95_pooled": "HD95 pooled",
    "hd95_max": "HD95 max",
    "hd100": "HD100",
    "hd95_area": "HD95 by area",
    "hd100_area": "HD100 by area",
    "assd": "ASSD",
    "nsd": "NSD",
    "nsd_area": "NSD by area",
    "volume_error": "volume error",
    "abs_volume_error": "abs. volume error",
    "reference_ml": "reference",
}


def metric_name(metric: str) -> str:
    """Return what people call a metric of a protocol."""
    return _METRICS.get(metric, metric.replace("_", " "))


def arm_name(teacher: str, method: str, *, reading: bool = False) -> str:
    """Return ``kd from unet``; a method without a teacher is named alone.

    Args:
        teacher: its label; empty or `NO_TEACHER` if there is none, or if it goes without saying.
        method: its label.
        reading: whether the method is a reading of its paper, which is marked.
    """
    name = f"{method}{DAGGER if reading else ''}"
    return name if teacher in ("", NO_TEACHER) else f"{name} from {teacher}"


def factor(unit: str) -> float:
    """Return what a score is multiplied by to be shown: fractions are shown in per cent."""
    return 100.0 if unit == "fraction" else 1.0


def level_unit(unit: str) -> str:
    """Return the unit in which a score is shown."""
    return "%" if unit == "fraction" else unit


def difference_unit(unit: str) -> str:
    """Return the unit in which a difference of scores is shown: per cent differ by points."""
    return "points" if unit == "fraction" else unit


def p_value(p: float) -> str:
    """Return a p-value as one prints it; empty for NaN."""
    if math.isnan(p):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def plural(count: float, noun: str) -> str:
    """Return ``1 case``, ``2 cases``."""
    return f"{count:.0f} {noun}{'' if count == 1 else 's'}"


def span(counts: Iterable[float], noun: str) -> str:
    """Return ``3 cases``, or ``2 to 5 cases`` where the counts differ."""
    low, high = min(found := list(counts)), max(found)
    return plural(low, noun) if low == high else f"{low:.0f} to {plural(high, noun)}"
