"""Shared by networks whose strides are given level by level: one for all axes, or one an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kdpipe.errors import ConfigError

PerAxis = int | Sequence[int]
Strides = Sequence[PerAxis]


def check_strides(
    strides: Strides, levels: int, spatial_dims: int | None = None, of: str = "levels"
) -> None:
    """Check that there is a stride between each two levels, all 1 or more, for the same axes.

    Args:
        strides: finest first; an int, or one an axis.
        levels: of the network.
        spatial_dims: how many axes there are, where that is known.
        of: what the network's parameters call its levels.

    Raises:
        ConfigError: another number of strides, a stride below 1, or another number of axes.
    """
    shown = [stride if isinstance(stride, int) else list(stride) for stride in strides]
    if len(strides) != levels - 1:
        raise ConfigError(
            f"{levels} {of} need {levels - 1} strides, one between each two; strides are {shown}"
        )
    per_axis = [stride for stride in strides if not isinstance(stride, int)]
    numbers = [stride for stride in strides if isinstance(stride, int)]
    if min((*numbers, *(min(sides, default=0) for sides in per_axis))) < 1:
        raise ConfigError(f"strides {shown} must all be 1 or more")
    axes = {len(sides) for sides in per_axis}
    if len(axes) > 1 or (axes and spatial_dims not in {None, *axes}):
        wanted = f"{spatial_dims} axes" if spatial_dims else "as many axes"
        raise ConfigError(
            f"strides {shown} must each be one number, or have {wanted}: give one an axis"
        )


def reduction(strides: Strides) -> int | tuple[int, ...]:
    """Return the product of the strides, per axis where any of them is."""
    axes = next((len(stride) for stride in strides if not isinstance(stride, int)), 0)
    if not axes:
        return math.prod(stride for stride in strides if isinstance(stride, int))
    per_axis = [(stride,) * axes if isinstance(stride, int) else stride for stride in strides]
    return tuple(math.prod(sides) for sides in zip(*per_axis, strict=True))
