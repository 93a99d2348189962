"""Shared by the networks built on MONAI's ``UNet``, whose stages are nested, not listed.

``UNet.model`` is ``[down, SkipConnection(submodule), up]`` with the next coarser level, of the same
form, as `submodule`; the innermost `submodule` is the bottom layer. Level 0 is the finest.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from kdpipe.errors import ConfigError
from kdpipe.nets._strides import Strides, check_strides, reduction
from kdpipe.nets.base import INPUT, initialise


def build_unet(
    channels: Sequence[int],
    strides: Strides,
    residual_units: int,
    init: str,
    *,
    in_channels: int,
    out_channels: int,
    spatial_dims: int,
) -> nn.Module:
    """Build MONAI's ``UNet`` with its defaults: instance norm without affine, PReLU, kernel 3."""
    from monai.networks.nets.unet import UNet  # costs seconds

    check_levels(channels, strides, spatial_dims)
    network = UNet(
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        out_channels=out_channels,
        channels=tuple(channels),
        strides=tuple(strides),  # type: ignore[arg-type]  # per axis too, as its layers do
        num_res_units=residual_units,
    )
    initialise(network, init)
    return network


def unet_stages(channels: Sequence[int], strides: Strides, residual: bool) -> dict[str, str]:
    """Return the stages of a U-Net with `n` channels entries: n-1 levels and the bottom.

    With ``level = n-1-k``, ``dec<k>`` has ``channels[level-1]`` channels at a stride of
    ``prod(strides[:level])``; ``dec<n-1>`` is level 0, hence the logits. ``enc<i>`` has
    ``channels[i-1]`` channels at ``prod(strides[:i])``: the first level already strides.
    `penult` is the concatenation [skip, decoder] that enters the last up layer.
    """
    check_levels(channels, strides)
    levels = len(channels) - 1
    places = {f"enc{level + 1}": f"{_path(level)}.0" for level in range(levels)}
    places["bottleneck"] = _path(levels)
    for step in range(1, levels + 1):
        places[f"dec{step}"] = f"{_path(levels - step)}.2"
    up = f"{_path(1)}.2"  # the finest up layer below the one that yields the logits
    if residual:  # an up layer is then [transposed convolution, residual unit]
        places |= {"pre_act": f"{up}.0.conv", "corrected": f"{up}.1", "correction": f"{up}.1.conv"}
    else:
        places["pre_act"] = f"{up}.conv"
    return places | {"penult": f"model.2{INPUT}", "logits": "model.2"}


def unet_divisor(channels: Sequence[int], strides: Strides) -> int | tuple[int, ...]:
    """Return the reduction from image to bottom layer, per axis where any stride is."""
    check_levels(channels, strides)
    return reduction(strides)


def check_levels(
    channels: Sequence[int], strides: Strides, spatial_dims: int | None = None
) -> None:
    """Raise ConfigError unless all channels are positive and `strides` fit their number.

    See `kdpipe.nets._strides.check_strides`.
    """
    if min(channels) < 1:
        raise ConfigError(f"channels {list(channels)} must all be 1 or more")
    check_strides(strides, len(channels), spatial_dims, of="channels")


def _path(level: int) -> str:
    return "model" + ".1.submodule" * level
