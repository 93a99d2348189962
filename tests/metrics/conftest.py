"""Random mask pairs of many shapes, for tests against other libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy import ndimage


def _blob(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), rng.uniform(0.5, 3.0))
    return noise > np.quantile(noise, rng.uniform(0.3, 0.99))


def _voxels(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    for _ in range(rng.integers(1, 4)):
        mask[tuple(rng.integers(0, n) for n in shape)] = True
    return mask


def _thin(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """One-voxel-thick sheet or line through the whole image."""
    mask = np.zeros(shape, dtype=bool)
    axis = int(rng.integers(0, len(shape)))
    plane = [slice(None)] * len(shape)
    plane[axis] = slice(p := int(rng.integers(0, shape[axis])), p + 1)
    mask[tuple(plane)] = _blob(rng, shape)[tuple(plane)]
    return mask


def _box(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Box that touches the image border in a random corner."""
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(0, int(rng.integers(1, n + 1))) for n in shape)] = True
    return np.flip(mask, [a for a in range(len(shape)) if rng.random() < 0.5]).copy()


def _near(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """Like `mask` with a few wrong voxels at its rim and perhaps one far away."""
    grown = ndimage.binary_dilation(mask) & (rng.random(mask.shape) < 0.5) | mask
    return grown | _voxels(rng, mask.shape) if rng.random() < 0.5 else grown


def _mask_pairs(seed: int, count: int, ndim: int) -> Iterator[tuple[np.ndarray, np.ndarray, tuple]]:
    """Yield `count` triples (reference, prediction, spacing), neither mask empty."""
    rng = np.random.default_rng(seed)
    makers = (_blob, _voxels, _thin, _box)
    while count:
        shape = tuple(int(n) for n in rng.integers(1, 40 if ndim == 2 else 22, ndim))
        reference = makers[rng.integers(len(makers))](rng, shape)
        prediction = (
            _near(rng, reference)
            if rng.random() < 0.4
            else makers[rng.integers(len(makers))](rng, shape)
        )
        if not (reference.any() and prediction.any()):
            continue
        spacing = tuple(float(s) for s in rng.uniform(0.3, 5.0, ndim))
        if rng.random() < 0.4:  # equal steps make ties, where the order of sums shows
            spacing = (spacing[0], *(spacing[-1],) * (ndim - 1))
        count -= 1
        yield reference, prediction, spacing


@pytest.fixture
def mask_pairs() -> Callable[[int, int, int], Iterator[tuple[np.ndarray, np.ndarray, tuple]]]:
    """Function (seed, count, ndim) -> random (reference, prediction, spacing) triples."""
    return _mask_pairs
