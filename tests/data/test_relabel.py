"""Labels from scores: the compiled way, threads and slabs change no voxel."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from kdpipe.data.geometry import labels_at
from kdpipe.data.relabel import kernels, labels_between, labels_of
from kdpipe.data.targets import Targets
from kdpipe.errors import DataError

CLASSES = Targets(6)
MANY, MORE = Targets(11), Targets(19)  # in one group of channels, and in two
REGIONS = Targets(4, ((1, 2, 3), (1, 3), (3,)))
SHAPES = [(40, 37, 31), (1, 9, 12), (70, 1, 1), (130, 100, 90)]


def scores_of(shape: tuple[int, ...], targets: Targets, dtype: type = np.float32) -> np.ndarray:
    """Smooth scores; many are equal, so that ties show."""
    channels = targets.n_labels if targets.regions is None else len(targets.regions)
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.normal(size=(channels, *shape)), (0, 2, 2, 2))
    return (np.round(noise * 40) / 4).astype(dtype)


def points(shape: tuple[int, ...]) -> list[np.ndarray]:
    """Finer, coarser and turned round; beyond the edges; some exactly on voxels."""
    first, second, third = shape
    return [
        np.linspace(-0.5, first - 0.5, 2 * first + 1),
        np.linspace(second - 1, 0, 1 + second // 2),
        np.arange(third) * 1.0,
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("targets", [CLASSES, MANY, MORE, REGIONS])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_compiled_labels_are_those_of_numpy(
    shape: tuple[int, ...],
    targets: Targets,
    threads: int,
    dtype: type,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert kernels() is not None
    scores = scores_of(shape, targets, dtype)
    labels = labels_of(scores, targets, threads)
    found = labels_between(labels, points(shape), scores, targets, threads)
    np.testing.assert_array_equal(labels, targets.decode(scores))
    expected = labels_at(labels, points(shape), scores.astype(np.float32), targets.decode)
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 1

    monkeypatch.setenv("KDPIPE_JIT", "0")
    assert kernels() is None
    np.testing.assert_array_equal(labels_of(scores, targets), labels)


def test_a_part_of_a_larger_volume_is_not_copied_wrongly() -> None:
    scores = scores_of((40, 37, 31), CLASSES)
    for part in (scores[:, 7:20], scores[..., 3:9], scores[:, :, ::2], scores[::-1]):
        labels = labels_of(part, CLASSES)
        np.testing.assert_array_equal(labels, CLASSES.decode(part))
        where = points(labels.shape)
        expected = labels_at(labels, where, part, CLASSES.decode)
        np.testing.assert_array_equal(labels_between(labels, where, part, CLASSES), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("jit", ["0", "1"])
@pytest.mark.parametrize("targets", [CLASSES, MORE])
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (-1, 39, 36, 30), (3, 20, 4, 4)])
def test_scores_that_are_not_finite_are_refused(
    value: float,
    jit: str,
    targets: Targets,
    place: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KDPIPE_JIT", jit)
    scores = scores_of((40, 37, 31), targets)
    scores[place] = value
    with pytest.raises(DataError, match="NaN or infinite"):
        labels_of(scores, targets, threads=2)


def test_many_points_in_one_cell_keep_their_own_weights() -> None:
    """Points of a cell share the copy of its scores, along each axis; so do those on a voxel."""
    scores = scores_of((6, 7, 8), CLASSES) + np.float32(0.125)
    labels = labels_of(scores, CLASSES)
    where = [np.linspace(1, n - 2, 8 * n) for n in labels.shape]
    where[2] = np.concatenate([where[2], where[2][::-1], [3.0, 3.5, 3.0, 4.0]])
    expected = labels_at(labels, where, scores, CLASSES.decode)
    found = labels_between(labels, where, scores, CLASSES)
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) >= 3
