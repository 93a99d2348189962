"""The ways to the nearest voxel: moves in a ball, lines in a box, a tree. All find the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from scipy import ndimage

from kdpipe.metrics import ball, labelled, lines, nearest
from kdpipe.metrics.points import Points
from kdpipe.metrics.tree import in_tree

SPACINGS = [
    (1.0, 1.0, 1.0),
    (0.8, 0.8, 0.8),
    (3.0, 0.7, 0.7),
    (0.3, 1.1, 5.0),
    (1 / 3, 1 / 3, 2.0),
    (2.0, 1.0, 1e-5),  # a whole line is short: one without voxels must not count
]
SHAPES = [(24, 25, 26), (1, 60, 50), (40, 1, 30), (50, 30, 1), (3, 7, 90)]


def _masks(seed: int, shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    for share in (0.05, 0.004):
        mask = rng.random(shape) < share
        # One half only: the other's points lie outside the box of these.
        mask[:, :, : shape[2] // 2] &= rng.random() < 0.5
        mask[tuple(rng.integers(0, n) for n in shape)] = True
        yield mask


def _transform(source: np.ndarray, target: np.ndarray, spacing: tuple) -> np.ndarray:
    distance: np.ndarray = ndimage.distance_transform_edt(~target, sampling=spacing)
    return distance[source]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_lines_and_tree_equal_scipys_transform(shape: tuple, spacing: tuple) -> None:
    for seed in range(20):
        source, target = _masks(seed, shape)
        expected = _transform(source, target, spacing)
        places = np.flatnonzero(source), np.flatnonzero(target), shape, spacing
        assert np.array_equal(lines.in_lines(*places), expected)
        assert np.array_equal(in_tree(*places), expected)


@pytest.mark.parametrize("step", [0.7, 0.8, 1 / 3])
def test_voxels_on_either_side_are_one_site_to_scipys_transform(step: float) -> None:
    """Equally near ones, each with its mirror image along the first axis, around one voxel."""
    rng, shape, spacing = np.random.default_rng(0), (27, 27, 27), (step,) * 3
    centre = np.zeros(shape, bool)
    centre[13, 13, 13] = True
    steps = np.stack(np.indices(shape), axis=-1).reshape(-1, 3) - 13
    for square in (25, 50, 65, 85, 125):
        sites = steps[(steps**2).sum(axis=1) == square]
        for _ in range(30):
            z, y, x = rng.choice(sites, rng.integers(1, 4)).T + 13
            target = np.zeros(shape, bool)
            target[z, y, x] = target[26 - z, y, x] = True
            places = np.flatnonzero(centre), np.flatnonzero(target), shape, spacing
            expected = _transform(centre, target, spacing)
            assert np.array_equal(in_tree(*places), expected)
            assert np.array_equal(lines.in_lines(*places), expected)


@pytest.mark.parametrize("limit", ["BUILT", "MOST_VOXELS"])
def test_the_tree_is_asked_where_the_box_is_large(limit: str, monkeypatch) -> None:
    source, target = np.array([0]), np.array([11, 10**6 - 1])
    place = source, target, (100, 100, 100), (1.0, 1.0, 1.0)
    monkeypatch.setattr(lines, "BUILT", 10**6)
    assert lines.in_lines(*place) == [11.0]
    monkeypatch.setattr(lines, limit, 0)
    assert lines.in_lines(*place) is None


@pytest.mark.parametrize("width", [65534, 65535])
def test_a_line_is_as_long_as_16_bits_count(width: int, monkeypatch) -> None:
    """From the first voxel of a line to the last: the steps are not those of a line without any."""
    monkeypatch.setattr(lines, "BUILT", 10**6)
    ends = np.array([0]), np.array([width - 1]), (1, 1, width), (1.0, 1.0, 0.5)
    found = lines.in_lines(*ends)
    assert found is None if width > 65534 else found == [0.5 * (width - 1)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("way", ["ball", "lines", "tree"])
def test_each_way_alone_finds_the_same(way: str, threads: int, monkeypatch) -> None:
    if way != "ball":
        monkeypatch.setattr(ball, "BALL_VOXELS", 1)
    if way == "tree":
        monkeypatch.setattr(nearest, "in_lines", lambda *_: None)
    ball.ball_of.cache_clear()
    shape, spacing = (20, 30, 30), (3.0, 0.8, 0.8)
    structure = np.random.default_rng(0).integers(0, 3, shape)  # no voxel belongs to two
    masks = [[mask & (structure == k) for mask in _masks(k, shape)] for k in range(3)]
    sides = []
    for k in (0, 1):
        places = [np.flatnonzero(pair[k]) for pair in masks]
        sides.append(Points(np.concatenate(places), np.cumsum([0, *map(len, places)]), shape))
    kernels = labelled.kernels(jit=True)
    back, there = nearest.surface_to_surface(sides[0], sides[1], spacing, kernels, threads)
    for (reference, prediction), one, other in zip(masks, back, there, strict=True):
        assert np.array_equal(one, _transform(prediction, reference, spacing))
        assert np.array_equal(other, _transform(reference, prediction, spacing))
    ball.ball_of.cache_clear()
