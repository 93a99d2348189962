"""Label maps to channels and back: without loss, and the same in numpy and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kdpipe.data.targets import Targets

NESTED = {
    "brats": (4, ((1, 2, 3), (1, 3), (3,))),
    "unordered": (4, ((3,), (1, 2, 3), (1, 3))),
    "crossing": (4, ((1, 2), (2, 3), (2,))),
    "disjoint": (3, ((2,), (1,))),
    "one": (2, ((1,),)),
}
SHAPES = [(7, 6, 5), (9, 8)]


def label_map(n_labels: int, shape: tuple[int, ...]) -> torch.Tensor:
    drawn = np.random.default_rng(0).integers(0, n_labels, shape)
    return torch.from_numpy(drawn)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NESTED)
def test_regions_of_a_label_map_decode_to_it(name: str, shape: tuple[int, ...]) -> None:
    n_labels, regions = NESTED[name]
    targets, label = Targets(n_labels, regions), label_map(n_labels, shape)
    inside = targets.encode(label)
    assert inside.shape == (len(regions), *shape)
    assert inside.dtype == torch.int64
    for channel, ids in enumerate(regions):
        assert torch.equal(inside[channel] == 1, torch.isin(label, torch.tensor(ids)))
    logits = 6.0 * inside - 3
    np.testing.assert_array_equal(targets.decode(logits.numpy()), label.numpy())
    assert torch.equal(targets.decode_tensor(logits).long(), label)


@pytest.mark.parametrize("shape", SHAPES)
def test_classes_are_their_label_map(shape: tuple[int, ...]) -> None:
    targets, label = Targets(4), label_map(4, shape)
    assert targets.encode(label) is label
    logits = torch.nn.functional.one_hot(label, 4).movedim(-1, 0).float()
    np.testing.assert_array_equal(targets.decode(logits.numpy()), label.numpy())


@pytest.mark.parametrize("regions", [None, ((1, 2, 3), (1, 3), (3,)), ((1, 2), (2, 3), (2,))])
@pytest.mark.parametrize("shape", SHAPES)
def test_numpy_and_torch_decode_alike(regions: Any, shape: tuple[int, ...]) -> None:
    """Whole numbers make many ties and many zeros, and regions that contradict each other."""
    targets = Targets(4, regions)
    drawn = np.random.default_rng(1).integers(-2, 3, (4 if regions is None else 3, *shape))
    scores = drawn.astype(np.float32)
    by_numpy, by_torch = targets.decode(scores), targets.decode_tensor(torch.from_numpy(scores))
    assert by_numpy.dtype == np.uint8
    assert by_torch.dtype == torch.uint8
    np.testing.assert_array_equal(by_numpy, by_torch.numpy())
    assert set(np.unique(by_numpy)) == {0, 1, 2, 3}


def test_of_equal_classes_the_lowest_wins() -> None:
    scores = np.array([[0, 1, 1], [0, 2, 1], [0, 2, 3]], np.float32)
    assert Targets(3).decode(scores).tolist() == [0, 1, 2]


def test_a_region_needs_a_positive_logit_and_a_smaller_one_stands_alone() -> None:
    """As in nnU-Net: enhancing tumour counts even where the channels around it say no."""
    targets = Targets(4, ((1, 2, 3), (1, 3), (3,)))
    scores = np.array([[0, 1, 1, -1, 1], [0, 0, 1, -1, -1], [0, 0, 0, 1, 1]], np.float32)
    assert targets.decode(scores).tolist() == [0, 2, 1, 3, 3]


@pytest.mark.parametrize("regions", [None, ((1, 2), (2,))])
def test_empty_label_maps(regions: Any) -> None:
    targets = Targets(3, regions)
    encoded = targets.encode(torch.zeros(4, 5, dtype=torch.int64))
    assert not encoded.any()
    silent = np.full((len(regions or "012"), 4, 5), -1, np.float32)
    assert not targets.decode(silent).any()


def test_what_is_scored_and_read_back_from_a_run() -> None:
    run = {"targets": {"n_labels": 4, "regions": [[1, 2, 3], [1, 3], [3]]}}
    targets = Targets.of(run)
    assert targets.kind == "regions"
    assert targets.structures == {"0": (1, 2, 3), "1": (1, 3), "2": (3,)}
    classes = Targets.of({"targets": {"n_labels": 3, "regions": None}})
    assert classes.kind == "classes"
    assert classes.structures == {"1": (1,), "2": (2,)}
