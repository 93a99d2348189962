"""Shared by U-Nets whose strides, and kernels, may differ by level and by axis, as nnU-Net's do.

Level 0 is the finest. A kernel or a stride is a number for all axes, or a tuple of one an axis.
"""

from __future__ import annotations

from collections.abc import Sequence

from kdpipe.errors import ConfigError

PerAxis = int | tuple[int, ...]


def check_levels(
    strides: Sequence[PerAxis],
    spatial_dims: int | None = None,
    kernels: Sequence[PerAxis] | None = None,
    **per_level: Sequence[int] | None,
) -> None:
    """Raise ConfigError unless there is one entry a level, and each stride divides the grid evenly.

    Args:
        strides: between each two levels.
        spatial_dims: how many axes there are, where that is known.
        kernels: of each level; None for what `level_kernels` derives.
        per_level: what else there is a level (channels, blocks), by its name; None is not checked.
    """
    levels = len(strides) + 1
    sizes = level_kernels(kernels, levels)
    for name, given in {"kernels": kernels, **per_level}.items():
        if given is not None and len(given) != levels:
            raise ConfigError(
                f"{name} {list(given)} have {len(given)} entries, but {len(strides)} strides are "
                f"between {levels} levels: give one a level"
            )
    for name, numbers in per_level.items():
        if numbers is not None and min(numbers) < 1:
            raise ConfigError(f"{name} {list(numbers)} must all be 1 or more")
    _check_axes(strides, sizes, spatial_dims)
    axes = max((len(entry) for entry in (*strides, *sizes) if isinstance(entry, tuple)), default=1)
    for stride, kernel in zip(level_strides(strides), sizes, strict=True):
        _check_even(stride, kernel, axes)


def level_strides(strides: Sequence[PerAxis]) -> tuple[PerAxis, ...]:
    """Return the stride at the entry of each level: 1 for the finest."""
    return (1, *strides)


def level_kernels(kernels: Sequence[PerAxis] | None, levels: int) -> tuple[PerAxis, ...]:
    """Return the kernel of each level, 3 if not given."""
    return (3,) * levels if kernels is None else tuple(kernels)


def level_channels(
    channels: Sequence[int] | None, levels: int, spatial_dims: int
) -> tuple[int, ...]:
    """Return the channels of each level; if not given 32, doubled up to 320 (2D: 512)."""
    if channels is not None:
        return tuple(channels)
    most = 320 if spatial_dims == 3 else 512
    return tuple(min(32 * 2**level, most) for level in range(levels))


def _check_axes(
    strides: Sequence[PerAxis], kernels: Sequence[PerAxis], spatial_dims: int | None
) -> None:
    """Raise ConfigError unless strides and kernels are for the same axes, and for those given."""
    axes = {len(entry) for entry in (*strides, *kernels) if isinstance(entry, tuple)}
    wanted = axes | ({spatial_dims} if axes and spatial_dims else set())
    if len(wanted) > 1:
        here = f"the image has {spatial_dims}" if spatial_dims else "not all for the same"
        raise ConfigError(
            f"strides {list(strides)} and kernels {list(kernels)} are for "
            f"{' or '.join(map(str, sorted(axes)))} axes, {here}: give each as one number, or as "
            "one an axis"
        )


def _check_even(stride: PerAxis, kernel: PerAxis, axes: int) -> None:
    for step, side in zip(_by_axis(stride, axes), _by_axis(kernel, axes), strict=True):
        if side < 1 or side % 2 == 0 or not 1 <= step <= side:
            raise ConfigError(
                f"kernel {kernel} with stride {stride} does not divide the grid evenly: take odd "
                "kernels, and strides from 1 to the kernel's size"
            )


def _by_axis(entry: PerAxis, axes: int) -> tuple[int, ...]:
    return entry if isinstance(entry, tuple) else (entry,) * axes
