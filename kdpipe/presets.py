"""How images are prepared, and the patch that networks see: the presets of a card."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdpipe.schema import Strict

Spacing = tuple[float, float, float]


class Window(Strict):
    """Clip to `[low, high]` (in HU for CT) and scale linearly to `[0, 1]`."""

    kind: Literal["window"]
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Window:
        _check_order(self.low, self.high)
        return self


class ZScore(Strict):
    """Subtract the mean and divide by the standard deviation of each case and channel."""

    kind: Literal["zscore"]
    nonzero: bool = Field(True, description="statistics over non-zero voxels only")


class Standardize(Strict):
    """Clip to `[low, high]`, subtract `mean`, divide by `sd`: numbers of a whole data set."""

    kind: Literal["standardize"]
    low: float
    high: float
    mean: float
    sd: float = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Standardize:
        _check_order(self.low, self.high)
        return self


class Rescale(Strict):
    """Scale each case and channel linearly so that its range is `[0, 1]`."""

    kind: Literal["rescale"]


class Unchanged(Strict):
    """Leave the intensities as they are stored."""

    kind: Literal["unchanged"]


def _check_order(low: float, high: float) -> None:
    if low >= high:
        raise ValueError(f"low ({low}) must be below high ({high})")


Intensity = Annotated[
    Window | ZScore | Standardize | Rescale | Unchanged, Field(discriminator="kind")
]


class Preparation(Strict):
    """How images are prepared; lengths are in the order x, y, z of `orientation`."""

    orientation: str | None = Field(
        "RAS",
        pattern=r"^[RLAPSI]{3}$",
        description="axis codes, as nibabel's; null: as each case is stored",
    )
    spacing: tuple[float | None, float | None, float | None] | None = Field(
        None, description="mm; null, for all or one axis, keeps each case's own"
    )
    image_interpolation: Literal["linear", "bspline"] = "bspline"
    intensity: Intensity | tuple[Intensity, ...] = Field(
        description="for all channels, or one a channel"
    )
    crop_foreground: bool = Field(
        False, description="crop to voxels above a window's low, else to those that are not 0"
    )

    @model_validator(mode="after")
    def _positive_spacing(self) -> Preparation:
        if self.spacing is not None and any(s is not None and s <= 0 for s in self.spacing):
            raise ValueError(f"spacing must be positive, given {self.spacing}")
        return self

    def intensities(self, channels: int) -> tuple[Intensity, ...]:
        """Return the intensity transform of each channel; ValueError if the numbers differ."""
        if not isinstance(self.intensity, tuple):
            return (self.intensity,) * channels
        if len(self.intensity) != channels:
            raise ValueError(f"{len(self.intensity)} intensity entries for {channels} channels")
        return self.intensity


class Preset(Preparation):
    """A preparation and the patch that suits it.

    A patch of two sides makes two-dimensional networks of a study: they are trained on slices
    along the third axis of the prepared volumes, predict slice by slice and are scored by volume.
    """

    patch: tuple[int, int, int] | tuple[int, int] = Field(
        description="training and sliding-window patch, voxels; two sides: slices"
    )

    @model_validator(mode="after")
    def _positive_patch(self) -> Preset:
        if any(size < 1 for size in self.patch):
            raise ValueError(f"patch sides must be at least 1 voxel, given {self.patch}")
        return self

    @property
    def preparation(self) -> Preparation:
        """The part that the prepared images depend on."""
        return Preparation.model_validate(self.model_dump(exclude={"patch"}))
