"""Where the windows of a volume lie, and the sums of what they say about each voxel.

Positions, weights and the order of all sums are those of MONAI's `sliding_window_inference`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from types import ModuleType

import torch
from torch import Tensor

from kdpipe.data.relabel import Part, in_parts, kernels

Start = tuple[int, ...]

_CACHED = 1 << 20
"""Voxels whose weighted scores are made at a time, so that they stay in the cache."""


def window_starts(size: Sequence[int], patch: Sequence[int], overlap: float) -> list[Start]:
    """Return the first voxel of each window, the first axis slowest; the last ends at the edge.

    Args:
        size: of the volume, no side below the patch's.
        patch: window size.
        overlap: share in [0, 1).
    """
    axes = []
    for n, side in zip(size, patch, strict=True):
        step = max(1, int(side * (1 - overlap)))
        count = math.ceil((n - side) / step) + 1
        axes.append([min(i * step, n - side) for i in range(count)])
    return list(product(*axes))


@lru_cache(maxsize=8)
def importance(patch: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the weights (*patch) of a window's voxels: Gaussian, sd an eighth of each side."""
    weights = torch.ones((), device=device)
    for side in patch:
        half = (side - 1) / 2
        x = torch.arange(-half, half + 1, dtype=torch.float, device=device)
        weights = weights.unsqueeze(-1) * torch.exp(x**2 / (-2 * (side * 0.125) ** 2))
    return weights.clamp_(min=max(weights.min().item(), 1e-3))


def _loops() -> ModuleType | None:
    if kernels() is None:
        return None
    from kdpipe.infer import blending_jit  # needs numba

    return blending_jit


class Sums:
    """Weighted sums of the windows' scores, of the planes that windows still reach.

    Args:
        size: of the volume (or slice).
        patch: window size.
        whole: keep all planes.
    """

    def __init__(self, size: Sequence[int], patch: Sequence[int], whole: bool = False):
        self.size, self.patch = tuple(size), tuple(patch)
        self.begin = 0
        self._lead = 0  # 1 when the buffer starts with the last finished plane
        thickness = self.size[0] if whole else min(self.size[0], self.patch[0] + 1)
        self._shape = (thickness, *self.size[1:])
        self._scores = self._weights = torch.empty(0)

    def add(self, start: Start, scores: Tensor) -> None:
        """Add a window's scores (K, *patch) at `start`; the first axis must not go back."""
        weights = importance(self.patch, scores.device)
        if not self._scores.numel():
            self._scores = torch.zeros((len(scores), *self._shape), device=scores.device)
            self._weights = torch.zeros(self._shape, device=scores.device)
        at = (start[0] - self.begin + self._lead, *start[1:])
        box = tuple(slice(low, low + side) for low, side in zip(at, self.patch, strict=True))
        loops = _loops() if scores.device.type == "cpu" and scores.dtype == torch.float32 else None
        if loops is None:
            self._add(box, scores, weights)
            return
        self._weights[box] += weights
        # slices are volumes of one plane
        arrays = (self._scores, scores.contiguous(), weights)
        sums, given, share = (
            (array if len(box) == 3 else array.unsqueeze(-3)).numpy() for array in arrays
        )
        corner = (0,) * (3 - len(at)) + at

        def part(limits: Part) -> None:
            channels = slice(*limits)
            loops.add_weighted(sums[channels], corner, given[channels], share)

        in_parts(part, len(given), torch.get_num_threads(), 1)

    def _add(self, box: tuple[slice, ...], scores: Tensor, weights: Tensor) -> None:
        step = max(1, _CACHED // weights.numel())
        buffer = torch.empty_like(scores[:step])
        for first in range(0, len(scores), step):
            part = scores[first : first + step]
            weighted = torch.mul(part, weights, out=buffer[: len(part)])
            self._scores[first : first + step, *box] += weighted
        self._weights[box] += weights

    def finish(self, end: int) -> tuple[int, Tensor]:
        """Return the blended scores of the planes before `end`, and where they begin."""
        count = end - self.begin
        here = slice(self._lead, self._lead + count)
        self._scores[:, here] /= self._weights[here]
        return self.begin - self._lead, self._scores[:, : here.stop]

    def move(self, begin: int) -> None:
        """Make room: only `begin` and what follows, and the plane before it, are still needed."""
        shift = begin - self.begin + self._lead - 1
        for sums in (self._scores, self._weights[None]):
            kept = sums.shape[1] - shift
            if shift:
                for at in range(0, kept, shift):  # source and target must not overlap
                    size = min(shift, kept - at)
                    sums[:, at : at + size] = sums[:, at + shift : at + shift + size]
            sums[:, max(kept, 0) :] = 0
        self.begin, self._lead = begin, 1
