"""Named evaluation protocols: what is measured, how, and what a missing structure counts.

"HD95" has at least four definitions, and libraries disagree on empty masks: MONAI returns NaN and
drops a missed organ from the mean, medpy raises, others score 0. A protocol fixes all of it under
a name. Protocols are data: a new one is one more entry in `PROTOCOLS`, and only a new kind of
measurement needs a function in `QUANTITIES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kdpipe.errors import ConfigError, did_you_mean
from kdpipe.metrics.case import LabelPair, Status, StructurePair
from kdpipe.metrics.surface import check_spacing, max_hausdorff, pooled_hausdorff

Penalty = float | Literal["diagonal"]


@dataclass(frozen=True)
class EmptyRule:
    """Value of a metric where the structure is missing.

    A number is used as it is (NaN: left out of means); `"diagonal"` is the diagonal of the whole
    image, edge to edge, in the protocol's unit of distance.
    """

    missing_in_prediction: Penalty
    missing_in_reference: Penalty
    missing_in_both: Penalty


@dataclass(frozen=True)
class Metric:
    """One column of a protocol.

    Attributes:
        name: how tables call it.
        quantity: what is measured where the structure is in both volumes; a key of `QUANTITIES`.
        empty: what counts where it is not.
        percentile: of the surface distances, in (0, 100]; NaN for a quantity that takes none.
    """

    name: str
    quantity: str
    empty: EmptyRule
    percentile: float = math.nan

    def __post_init__(self) -> None:
        """Raise ConfigError for an unknown quantity or a percentile that does not fit it."""
        where = f"metric {self.name!r}"
        if self.quantity not in QUANTITIES:
            hint = did_you_mean(self.quantity, QUANTITIES)
            raise ConfigError(f"{where}: unknown quantity {self.quantity!r}; {hint}")
        if QUANTITIES[self.quantity].is_distance:
            if not 0 < self.percentile <= 100:
                raise ConfigError(f"{where}: percentile {self.percentile} is not in (0, 100]")
        elif not math.isnan(self.percentile):
            raise ConfigError(f"{where}: {self.quantity!r} takes no percentile: leave it out")


@dataclass(frozen=True)
class Protocol:
    """A named way to score a case; tables quote `definition` in their captions.

    Attributes:
        name: value of the `protocol` column.
        version: raised when a change of the entry changes numbers.
        definition: one paragraph that a reader of a table needs.
        metrics: the columns, in order.
        distance_unit: `"mm"`, or `"voxel"` for papers that ignore the spacing.
    """

    name: str
    version: int
    definition: str
    metrics: tuple[Metric, ...]
    distance_unit: Literal["mm", "voxel"] = "mm"


@dataclass(frozen=True)
class Score:
    """One value: `unit` is `"fraction"`, `"mm"` or `"voxel"`; `status` says what was missing."""

    structure: str
    metric: str
    value: float
    unit: str
    status: Status


@dataclass(frozen=True)
class Quantity:
    """A measurement of a structure that both volumes hold: (pair, percentile) -> value."""

    measure: Callable[[StructurePair, float], float]
    is_distance: bool


QUANTITIES: dict[str, Quantity] = {
    "dice": Quantity(lambda pair, _: pair.overlap.dice, is_distance=False),
    "hausdorff_pooled": Quantity(
        lambda pair, percentile: pooled_hausdorff(pair.distances, percentile), is_distance=True
    ),
    "hausdorff_max": Quantity(
        lambda pair, percentile: max_hausdorff(pair.distances, percentile), is_distance=True
    ),
}

_PENALISED = EmptyRule("diagonal", "diagonal", math.nan)
_LEFT_OUT = EmptyRule(math.nan, math.nan, math.nan)
_DICE_ZERO = EmptyRule(0.0, 0.0, math.nan)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="strict_mm",
            version=1,
            definition=(
                "Dice and 95th percentile Hausdorff distances in mm on the native image grid, "
                "between voxel centres of the face-connected surfaces: hd95_pooled is one "
                "percentile over both directions, hd95_max the larger one of the two directed "
                "percentiles. A structure missing in exactly one of prediction and reference "
                "counts Dice 0 and HD95 = diagonal of the image; missing in both, it is left out."
            ),
            metrics=(
                Metric("dice", "dice", _DICE_ZERO),
                Metric("hd95_pooled", "hausdorff_pooled", _PENALISED, 95.0),
                Metric("hd95_max", "hausdorff_max", _PENALISED, 95.0),
            ),
        ),
        Protocol(
            name="medpy",
            version=1,
            definition=(
                "medpy.metric.binary dc and hd95 (connectivity 1, spacing given, mm): one 95th "
                "percentile over the surface distances of both directions. HD95 is left out where "
                "the structure is missing in prediction or reference (medpy raises there); Dice "
                "is left out where it is missing in both."
            ),
            metrics=(
                Metric("dice", "dice", _DICE_ZERO),
                Metric("hd95_pooled", "hausdorff_pooled", _LEFT_OUT, 95.0),
            ),
        ),
        Protocol(
            name="monai",
            version=1,
            definition=(
                "MONAI DiceMetric and compute_hausdorff_distance(percentile=95, spacing given, "
                "mm): the larger one of the two directed 95th percentiles. HD95 is NaN and left "
                "out where the structure is missing in prediction or reference, so that a missed "
                "organ does not count; Dice is left out where it is missing in the reference."
            ),
            metrics=(
                Metric("dice", "dice", EmptyRule(0.0, math.nan, math.nan)),
                Metric("hd95_max", "hausdorff_max", _LEFT_OUT, 95.0),
            ),
        ),
    )
}


def get_protocol(name: str) -> Protocol:
    """Return the protocol called `name`; ConfigError with the valid names if there is none."""
    if name not in PROTOCOLS:
        raise ConfigError(f"unknown protocol {name!r}; {did_you_mean(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def score_case(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float],
    structures: Mapping[str, tuple[int, ...]],
    protocol: Protocol | str,
) -> list[Score]:
    """Score one case: every structure with every metric of the protocol, in that order.

    Args:
        reference: integer labels in [0, 65535], shape `S` of 2 or 3 axes.
        prediction: likewise, same shape.
        spacing_mm: distance between voxel centres along each axis of the arrays, in mm.
        structures: name -> labels whose union is the structure.
        protocol: a `Protocol` or the name of one.

    Raises:
        ConfigError: unknown protocol; no structure; a structure without labels, with a repeated
            label or with one below 1.
        ValueError: volumes or spacing as `joint_histogram` and `surface_distances` say.
    """
    protocol = get_protocol(protocol) if isinstance(protocol, str) else protocol
    check_structures(structures)
    spacing = check_spacing(spacing_mm, reference.ndim)
    if protocol.distance_unit == "voxel":
        spacing = (1.0,) * reference.ndim
    labels = LabelPair(reference, prediction, spacing)
    scores = []
    for name, ids in structures.items():
        pair = StructurePair(labels, ids)
        scores += [
            _score(name, metric, pair, labels.diagonal, protocol.distance_unit)
            for metric in protocol.metrics
        ]
    return scores


def _score(
    structure: str, metric: Metric, pair: StructurePair, diagonal: float, distance_unit: str
) -> Score:
    quantity = QUANTITIES[metric.quantity]
    if pair.status == "ok":
        value = quantity.measure(pair, metric.percentile)
    else:
        penalty: Penalty = getattr(metric.empty, pair.status)
        value = diagonal if penalty == "diagonal" else float(penalty)
    unit = distance_unit if quantity.is_distance else "fraction"
    return Score(structure, metric.name, value, unit, pair.status)


def check_structures(structures: Mapping[str, Sequence[int]]) -> None:
    """Raise ConfigError unless every structure is a non-empty set of labels from 1 upwards."""
    if not structures:
        raise ConfigError("no structure to score: give at least one, as name: [labels]")
    for name, ids in structures.items():
        if not ids or len(set(ids)) != len(ids) or min(ids) < 1:
            raise ConfigError(
                f"structure {name!r} needs distinct labels from 1 upwards, got {tuple(ids)}"
            )
