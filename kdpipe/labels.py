"""What the label maps of a data set mean: classes, and regions that overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from kdpipe.errors import did_you_mean
from kdpipe.schema import Strict


class Labels(Strict):
    """Label ids by name; 0 is the background.

    They are the ids in the files unless `remap` or `palette` says how those are read.
    With ``targets: regions`` a network has one sigmoid channel for each region, in their order,
    and the regions are what is scored.
    """

    raw: dict[int, str]
    remap: dict[int, int] = Field({}, description="id in the files -> id in raw")
    unlisted: Literal["error", "background"] = Field(
        "error", description="what an id in the files that remap does not list becomes"
    )
    palette: dict[str, int] = Field(
        {}, description="of colour masks: 'r,g,b' -> id in raw; another colour is an error"
    )
    regions: dict[str, tuple[int, ...]] = Field(
        {}, description="unions of labels by name, which may overlap, such as WT: [1, 2, 3]"
    )
    targets: Literal["classes", "regions"] = "classes"
    may_be_absent: tuple[str, ...] | Literal["all"] = Field(
        (), description="structures that a case may lack without being an error"
    )

    @model_validator(mode="after")
    def _complete(self) -> Labels:
        ids = sorted(self.raw)
        if ids != list(range(len(ids))) or len(ids) < 2:
            raise ValueError(f"label ids must run from 0 without gaps, given: {ids}")
        if len(set(self.raw.values())) != len(ids):
            raise ValueError(f"two label ids share a name: {sorted(self.raw.values())}")
        if self.may_be_absent != "all":
            for name in self.may_be_absent:
                if name not in self.raw.values():
                    raise ValueError(
                        f"may_be_absent: {did_you_mean(name, self.structures)}, given {name!r}"
                    )
        return self

    @model_validator(mode="after")
    def _readable(self) -> Labels:
        if self.remap and self.palette:
            raise ValueError("remap and palette exclude one another")
        if unknown := sorted({*self.remap.values(), *self.palette.values()} - set(self.raw)):
            raise ValueError(f"remap and palette give ids that raw does not have: {unknown}")
        for colour in self.palette:
            parts = colour.split(",")
            if len(parts) != 3 or not all(p.isdigit() and int(p) < 256 for p in parts):
                raise ValueError(f"palette: {colour!r} is no colour such as '255,0,85'")
        return self

    @model_validator(mode="after")
    def _legal_regions(self) -> Labels:
        for name, ids in self.regions.items():
            wrong = sorted(set(ids) - set(self.structures.values()))
            if wrong or not ids or len(set(ids)) != len(ids):
                raise ValueError(
                    f"regions.{name}: needs distinct label ids of raw other than 0, given "
                    f"{list(ids)}"
                )
        if self.targets == "regions":
            if not self.regions:
                raise ValueError("targets: regions needs regions, such as {WT: [1, 2, 3]}")
            paint_order(tuple(self.regions.values()))
        return self

    @property
    def structures(self) -> dict[str, int]:
        """Foreground names and their ids, in the order of the ids."""
        return {self.raw[i]: i for i in sorted(self.raw) if i != 0}

    @property
    def region_ids(self) -> tuple[tuple[int, ...], ...] | None:
        """Label ids of each channel for ``targets: regions``; None for classes."""
        return tuple(self.regions.values()) if self.targets == "regions" else None

    @property
    def n_channels(self) -> int:
        """Channels of the logits: classes with the background, or regions."""
        return len(self.regions) if self.targets == "regions" else len(self.raw)

    @property
    def scored(self) -> dict[str, tuple[int, ...]]:
        """What is scored: name -> label ids whose union it is."""
        if self.targets == "regions":
            return dict(self.regions)
        return {name: (index,) for name, index in self.structures.items()}


def paint_order(regions: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    """Return how regions become a label map: (region, label to paint in it), painted in turn.

    Larger regions come first. A region paints the one label that no smaller region within it
    holds: whole tumour {1, 2, 3} paints 2 where {1, 3} and {3} are regions too. So what lies in a
    smaller region counts as part of the larger ones, as in nnU-Net.

    Raises:
        ValueError: a region has no such label, or several: its label map would be ambiguous.
    """
    sets = [frozenset(ids) for ids in regions]
    order = sorted(range(len(sets)), key=lambda index: (-len(sets[index]), index))
    painted = []
    for index in order:
        left = sets[index] - frozenset().union(*(s for s in sets if s < sets[index]))
        if len(left) != 1:
            raise ValueError(
                f"region {sorted(sets[index])} cannot be turned back into one label: without the "
                f"regions inside it the labels {sorted(left)} are left, one is needed; add a "
                "region for the others"
            )
        painted.append((index, next(iter(left))))
    labels = [label for _, label in painted]
    if len(set(labels)) != len(labels):
        raise ValueError(f"two regions would paint the same label: {labels}; take one of them out")
    return tuple(painted)
