"""Score a case by named protocols; what they are is data, see `kdpipe.protocols`.

One case is scored by any number of protocols at once: what they share (the joint histogram, the
surfaces and their distances) is computed once, and only if one of them asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from kdpipe.errors import ConfigError
from kdpipe.metrics.bands import Bands
from kdpipe.metrics.case import LabelPair, Status, StructurePair
from kdpipe.metrics.elements import robust_hausdorff, surface_dice_at_tolerance
from kdpipe.metrics.surface import assd, check_spacing, max_hausdorff, nsd, pooled_hausdorff
from kdpipe.protocols import (
    DEFAULT_TOLERANCE_MM,
    QUANTITIES,
    Metric,
    Protocol,
    Scoring,
    direction,
    get_protocol,
    protocol_names,
)

__all__ = [
    "MEASURES",
    "PROTOCOLS",
    "Protocol",
    "Score",
    "Scoring",
    "check_structures",
    "direction",
    "get_protocol",
    "score_case",
]

PROTOCOLS: dict[str, Protocol] = {name: get_protocol(name) for name in protocol_names()}


@dataclass(frozen=True)
class Score:
    """One value; `status` says what was missing, whatever the protocol makes of it.

    `unit` is ``fraction``, ``mm``, ``voxel`` or ``ml``.
    """

    structure: str
    metric: str
    protocol: str
    value: float
    unit: str
    status: Status


class _Pair(StructurePair):
    """A structure whose bands, as its distances, are counted once for all metrics."""

    @cached_property
    def counted(self) -> Bands:
        return self.bands()


def _volume_error(pair: StructurePair) -> float:
    reference, prediction = pair.overlap.reference, pair.overlap.prediction
    return prediction / reference - 1 if reference else math.inf


def _smoothed_dice(pair: StructurePair) -> float:
    counts = pair.overlap
    return (2 * counts.intersection + 1) / (counts.prediction + counts.reference + 1)


def _false_volume_twice(pair: StructurePair) -> float:
    counts = pair.overlap
    total = counts.prediction + counts.reference
    return 2 * (counts.prediction - counts.intersection) / total if total else math.nan


def _band_error(pair: _Pair, band: str) -> float:
    voxels, wrong = pair.counted[band]
    return wrong / voxels if voxels else math.nan


#: how each quantity of `kdpipe.protocols.QUANTITIES` is measured: (pair, parameter) -> value. The
#: parameter is the metric's percentile, tolerance or band; for a volume the size of a voxel.
MEASURES: dict[str, Callable[[_Pair, Any], float]] = {
    "dice": lambda pair, _: pair.overlap.dice,
    "dice_smoothed": lambda pair, _: _smoothed_dice(pair),
    "iou": lambda pair, _: pair.overlap.iou,
    "hausdorff_pooled": lambda pair, percentile: pooled_hausdorff(pair.distances, percentile),
    "hausdorff_max": lambda pair, percentile: max_hausdorff(pair.distances, percentile),
    "hausdorff_area": lambda pair, percentile: robust_hausdorff(pair.elements, percentile),
    "assd": lambda pair, _: assd(pair.distances),
    "nsd": lambda pair, tolerance: nsd(pair.distances, tolerance),
    "nsd_area": lambda pair, tolerance: surface_dice_at_tolerance(pair.elements, tolerance),
    "volume_error": lambda pair, _: _volume_error(pair),
    "abs_volume_error": lambda pair, _: abs(_volume_error(pair)),
    "false_volume_twice": lambda pair, _: _false_volume_twice(pair),
    "reference_volume": lambda pair, voxel: pair.overlap.reference * voxel,
    "band_error": _band_error,
}


def score_case(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float],
    structures: Mapping[str, Sequence[int]],
    protocols: Scoring | str | Sequence[Scoring | str],
    tolerances_mm: Mapping[str, float] | None = None,
) -> list[Score]:
    """Score one case: by each protocol every structure with every metric, in that order.

    Args:
        reference: integer labels in [0, 65535], shape `S` of 2 or 3 axes.
        prediction: likewise, same shape.
        spacing_mm: distance between voxel centres along each axis of the arrays, in mm. Protocols
            in voxels do not look at it.
        structures: name -> labels whose union is the structure.
        protocols: a protocol or several, themselves or by name.
        tolerances_mm: structure -> tolerance of the surface Dice, where a protocol leaves it to
            the data set; 1 mm for others. In voxels for a protocol in voxels.

    Raises:
        ConfigError: unknown protocol; no structure; a structure without labels, with a repeated
            label or with one below 1.
        ValueError: volumes or spacing as `joint_histogram` and `surface_distances` say.
    """
    check_structures(structures)
    spacing = check_spacing(spacing_mm, reference.ndim)
    cases: dict[str, _Case] = {}
    scores = []
    for scoring in as_scorings(protocols):
        unit = scoring.distance_unit
        if unit not in cases:
            steps = spacing if unit == "mm" else (1.0,) * reference.ndim
            cases[unit] = _Case(LabelPair(reference, prediction, steps, structures), structures)
        scores += cases[unit].score(scoring, tolerances_mm or {})
    return scores


def as_scorings(protocols: Scoring | str | Sequence[Scoring | str]) -> tuple[Scoring, ...]:
    """Return protocols that are given by name or themselves, one or several, as a tuple."""
    if isinstance(protocols, Scoring | str):
        protocols = (protocols,)
    return tuple(get_protocol(p) if isinstance(p, str) else p for p in protocols)


class _Case:
    """The structures of a case in one unit of distance, shared by its protocols."""

    def __init__(self, labels: LabelPair, structures: Mapping[str, Sequence[int]]) -> None:
        self.labels = labels
        self.pairs = {name: _Pair(labels, ids) for name, ids in structures.items()}

    def score(self, scoring: Scoring, tolerances: Mapping[str, float]) -> list[Score]:
        return [
            self._score(scoring, metric, structure, tolerances)
            for structure in self.pairs
            for metric in scoring.metrics
        ]

    def _score(
        self, scoring: Scoring, metric: Metric, structure: str, tolerances: Mapping[str, float]
    ) -> Score:
        pair, unit = self.pairs[structure], scoring.unit(metric)
        if unit == "ml" and len(self.labels.spacing) == 2:
            unit = "voxel"  # a slice has no volume
        rule = "measured" if pair.status == "ok" else getattr(metric.empty, pair.status)
        if rule == "measured":
            tolerance = tolerances.get(structure, DEFAULT_TOLERANCE_MM)
            value = MEASURES[metric.quantity](pair, self._parameter(metric, unit, tolerance))
        else:
            words = {"left_out": math.nan, "infinite": math.inf, "diagonal": self.labels.diagonal}
            value = words[rule] if isinstance(rule, str) else rule
        return Score(structure, metric.name, scoring.name, float(value), unit, pair.status)

    def _parameter(self, metric: Metric, unit: str, tolerance: float) -> float | str | None:
        if metric.tolerance_mm is not None:
            return tolerance if metric.tolerance_mm == "card" else metric.tolerance_mm
        if QUANTITIES[metric.quantity].unit == "volume":
            return math.prod(self.labels.spacing) / 1000 if unit == "ml" else 1.0
        return metric.percentile if metric.percentile is not None else metric.band


def check_structures(structures: Mapping[str, Sequence[int]]) -> None:
    """Raise ConfigError unless every structure is a non-empty set of labels from 1 upwards."""
    if not structures:
        raise ConfigError("no structure to score: give at least one, as name: [labels]")
    for name, ids in structures.items():
        if not ids or len(set(ids)) != len(ids) or min(ids) < 1:
            raise ConfigError(
                f"structure {name!r} needs distinct labels from 1 upwards, got {tuple(ids)}"
            )
