"""Metric protocols as data: what is measured, how, and what a missing structure counts.

"HD95" has at least four definitions, and libraries disagree on empty masks: MONAI returns NaN and
drops a missed organ from the mean, medpy raises, others score 0. A protocol fixes all of it under
a name. One YAML file in ``kdpipe/metrics/protocols`` is one protocol; its numbers are computed in
`kdpipe.metrics.protocol`. What decides numbers (`Scoring`) goes into the ``run.json`` of the
evaluation, so a new protocol, or a better explanation of one, rescores nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from kdpipe.errors import ConfigError, did_you_mean
from kdpipe.schema import Strict, explain
from kdpipe.yaml_files import load_yaml

FOLDER = Path(__file__).parent / "metrics" / "protocols"
#: errors by distance from the boundary; scored beside the protocols of every study
BANDS = "boundary_bands"
#: tolerance of the surface Dice where neither protocol nor card has one
DEFAULT_TOLERANCE_MM = 1.0

Penalty = (
    Annotated[float, Field(allow_inf_nan=False)]
    | Literal["left_out", "diagonal", "infinite", "measured"]
)
PARAMETERS = ("percentile", "tolerance_mm", "band")


class Kind(NamedTuple):
    """What is known of a quantity without measuring it.

    Attributes:
        unit: ``fraction``; ``distance`` (mm or voxels); ``volume`` (ml or voxels).
        direction: +1 where higher is better, -1 where lower is, 0 where neither is.
        parameter: the setting that it needs, if any.
    """

    unit: Literal["fraction", "distance", "volume"]
    direction: Literal[1, -1, 0]
    parameter: Literal["percentile", "tolerance_mm", "band"] | None = None


QUANTITIES: dict[str, Kind] = {
    "dice": Kind("fraction", 1),
    "dice_smoothed": Kind("fraction", 1),
    "iou": Kind("fraction", 1),
    "hausdorff_pooled": Kind("distance", -1, "percentile"),
    "hausdorff_max": Kind("distance", -1, "percentile"),
    "hausdorff_area": Kind("distance", -1, "percentile"),
    "assd": Kind("distance", -1),
    "nsd": Kind("fraction", 1, "tolerance_mm"),
    "nsd_area": Kind("fraction", 1, "tolerance_mm"),
    "volume_error": Kind("fraction", 0),
    "abs_volume_error": Kind("fraction", -1),
    "false_volume_twice": Kind("fraction", -1),
    "reference_volume": Kind("volume", 0),
    "band_error": Kind("fraction", -1, "band"),
}


def _one_for_all(value: Any) -> Any:
    if isinstance(value, int | float | str):
        return dict.fromkeys(EmptyRule.model_fields, value)
    return value


class EmptyRule(Strict):
    """Value of a metric where the structure is missing; in YAML one value may stand for all three.

    A number is used as it is. ``left_out`` is NaN, which no mean counts; ``diagonal`` is that of
    the whole image, edge to edge, in the protocol's unit of distance; ``measured`` is what the
    quantity itself gives.
    """

    missing_in_prediction: Penalty
    missing_in_reference: Penalty
    missing_in_both: Penalty


class Metric(Strict):
    """One column of a protocol: a quantity, its setting, and what counts where it is missing."""

    name: str
    quantity: str = Field(description="a key of QUANTITIES")
    empty: Annotated[EmptyRule, BeforeValidator(_one_for_all)]
    percentile: float | None = Field(None, gt=0, le=100, description="of the surface distances")
    tolerance_mm: Annotated[float, Field(gt=0)] | Literal["card"] | None = Field(
        None, description="of the surface Dice; card: that of the data set"
    )
    band: str | None = Field(
        None, description="of distances from the reference's boundary, see kdpipe.metrics.bands"
    )

    @model_validator(mode="after")
    def _has_its_parameter(self) -> Metric:
        if self.quantity not in QUANTITIES:
            hint = did_you_mean(self.quantity, QUANTITIES)
            raise ValueError(f"unknown quantity {self.quantity!r}; {hint}")
        needed = QUANTITIES[self.quantity].parameter
        for parameter in PARAMETERS:
            if (getattr(self, parameter) is None) == (parameter == needed):
                verb = "needs" if parameter == needed else "takes no"
                raise ValueError(f"{self.name}: {self.quantity!r} {verb} {parameter}")
        return self


def _named(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return [{"name": name, **settings} for name, settings in value.items()]


class Scoring(Strict):
    """What decides the numbers of a protocol.

    Attributes:
        name: value of the ``protocol`` column.
        version: raised when a change of the file changes numbers.
        grid: ``native``, that of the image as published; ``prepared``, that of the network.
        distance_unit: ``voxel`` for papers that ignore the spacing.
        metrics: the columns, in order; in YAML a mapping by name.
    """

    name: str
    version: int
    grid: Literal["native", "prepared"] = "native"
    distance_unit: Literal["mm", "voxel"] = "mm"
    metrics: Annotated[tuple[Metric, ...], BeforeValidator(_named), Field(min_length=1)]

    def unit(self, metric: Metric) -> str:
        """Return ``fraction``, ``mm``, ``voxel`` or ``ml``."""
        kind = QUANTITIES[metric.quantity].unit
        if kind == "fraction":
            return kind
        return "ml" if kind == "volume" and self.distance_unit == "mm" else self.distance_unit

    def direction(self, metric: str) -> int:
        """Return +1, -1 or 0, see `Kind`; ConfigError for a metric that the protocol lacks."""
        found = {entry.name: QUANTITIES[entry.quantity].direction for entry in self.metrics}
        if metric not in found:
            hint = did_you_mean(metric, found)
            raise ConfigError(f"protocol {self.name!r} has no metric {metric!r}; {hint}")
        return found[metric]


class Protocol(Scoring):
    """A named way to score a case, and what a reader of its tables has to know.

    Attributes:
        definition: one paragraph; tables quote it in their captions.
        source: whose code or paper this is, and how sure that is.
        paper: it reproduces the choices of a paper, traps included, for comparison with its
            table; such results are marked and decide nothing.
        internal: scored for figures, not for tables; no study can ask for it.
    """

    definition: str
    source: str
    paper: bool = False
    internal: bool = False

    @property
    def scoring(self) -> Scoring:
        """The part that decides numbers."""
        return Scoring.model_validate(self.model_dump(include=set(Scoring.model_fields)))


def protocol_names() -> list[str]:
    """Return the sorted names of all protocols."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


@functools.cache
def get_protocol(name: str) -> Protocol:
    """Return the protocol called `name`; ConfigError with the valid names if there is none."""
    names = protocol_names()
    if name not in names:
        raise ConfigError(f"unknown protocol {name!r}; {did_you_mean(name, names)}")
    file = FOLDER / f"{name}.yaml"
    try:
        content = load_yaml(file.read_text(encoding="utf-8"))
        return Protocol.model_validate({"name": name, **content})
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not readable as YAML: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{file}: {explain(error, Protocol)}") from None


def direction(protocol: str, metric: str) -> int:
    """+1 where a higher value is better, -1 where a lower one is, 0 where neither is.

    Raises:
        ConfigError: unknown protocol, or a metric that it does not have.
    """
    return get_protocol(protocol).direction(metric)


def check_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of a study's protocols.

    Raises:
        ValueError: unknown, internal, or named twice.
    """
    if not names:
        raise ValueError("name at least one protocol; strict_mm is the default")
    for name in names:
        if name not in protocol_names():
            public = [known for known in protocol_names() if not get_protocol(known).internal]
            raise ValueError(f"unknown protocol {name!r}; {did_you_mean(name, public)}")
        if get_protocol(name).internal:
            raise ValueError(f"{name!r} is scored beside the others; leave it out, see 'bands'")
    if len(set(names)) != len(names):
        raise ValueError(f"{', '.join(names)}: name each protocol once")
    return names
