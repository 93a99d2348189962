"""Labels of a card: which regions are legal, and how they become a label map again."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from kdpipe.labels import Labels, paint_order

RAW = {0: "background", 1: "necrosis", 2: "oedema", 3: "enhancing"}
BRATS = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}


def labels(**changes: Any) -> Labels:
    return Labels.model_validate({"raw": RAW, "regions": BRATS, "targets": "regions"} | changes)


@pytest.mark.parametrize(
    ("regions", "expected"),
    [
        (BRATS.values(), ((0, 2), (1, 1), (2, 3))),
        (((3,), (1, 2, 3), (1, 3)), ((1, 2), (2, 1), (0, 3))),  # channels in any order
        (
            ((1, 2, 3), (2, 3), (2,)),
            ((0, 1), (1, 3), (2, 2)),
        ),  # KiTS: kidney+masses, masses, tumour
        (((2,), (1,)), ((0, 2), (1, 1))),  # disjoint: as classes, in the given order
        (((1, 2), (2, 3), (2,)), ((0, 1), (1, 3), (2, 2))),  # two that overlap in a third
        ((), ()),
    ],
)
def test_larger_regions_are_painted_first(regions: Any, expected: Any) -> None:
    assert paint_order(tuple(regions)) == expected


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        (((1, 2, 3), (3,)), r"region \[1, 2, 3\] .*labels \[1, 2\] are left, one is needed"),
        (((1, 2), (1,), (2,)), r"region \[1, 2\] .*labels \[\] are left"),
        (((1, 2), (1, 2), (2,)), r"would paint the same label: \[1, 1, 2\]"),
        (((1,), (1,)), r"would paint the same label: \[1, 1\]"),
        (((1, 2), (2, 3), (1,), (3,)), r"would paint the same label"),
    ],
)
def test_regions_without_one_label_map_are_refused(regions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paint_order(regions)
    named = {f"r{index}": ids for index, ids in enumerate(regions)}
    with pytest.raises(ValidationError, match=message):
        labels(regions=named)
    assert labels(regions=named, targets="classes").n_channels == 4, "only named, not trained for"


@pytest.mark.parametrize("ids", [(), (0, 1), (1, 1), (4,), (-1,)])
@pytest.mark.parametrize("targets", ["classes", "regions"])
def test_regions_hold_distinct_structures(ids: tuple[int, ...], targets: str) -> None:
    with pytest.raises(ValidationError, match=r"regions.X: needs distinct label ids of raw other"):
        labels(regions={"X": ids}, targets=targets)


def test_targets_need_regions() -> None:
    with pytest.raises(ValidationError, match="targets: regions needs regions, such as"):
        labels(regions={})


def test_what_is_trained_and_scored_follows_the_targets() -> None:
    regions, classes = labels(), labels(targets="classes")
    assert regions.n_channels == 3
    assert regions.region_ids == ((1, 2, 3), (1, 3), (3,))
    assert regions.scored == BRATS
    assert list(regions.scored) == ["WT", "TC", "ET"], "in the order of the channels"
    assert classes.n_channels == 4
    assert classes.region_ids is None
    assert classes.scored == {"necrosis": (1,), "oedema": (2,), "enhancing": (3,)}
