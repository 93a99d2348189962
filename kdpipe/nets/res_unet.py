"""Residual U-Net, teacher T1 of ACF-BCKD: MONAI's U-Net with residual units, 19 M parameters.

Source: Kerfoot et al., "Left-ventricle quantification using residual U-Net" (STACOM 2018), in the
form of MONAI's ``UNet`` as used as a teacher by ACF-BCKD (Expert Systems with Applications 2025):
channels 64 to 512, two convolutions a residual unit, instance norm, PReLU. Each up layer is a
transposed convolution followed by a residual unit of one convolution with identity shortcut.
Deviation: concatenation order [skip, decoder] (MONAI's) instead of [decoder, skip].

With the defaults: ``enc1..enc3`` 64, 128, 256 channels at stride 2, 4, 8; ``bottleneck`` 512 at 8;
``dec1`` 128 at 4; ``dec2`` 64 at 2; ``dec3`` = ``logits``; ``penult`` 128 at 2. ``corrected`` is
``dec2``, the output x + f(x) of its residual unit, and ``correction`` is f(x).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from kdpipe.discover import Parameters
from kdpipe.nets._unet import build_unet, unet_divisor, unet_stages


class Params(Parameters):
    """Parameters of the network."""

    channels: tuple[int, ...] = Field((64, 128, 256, 512), min_length=3, description="finest first")
    strides: tuple[int | tuple[int, ...], ...] = Field(
        (2, 2, 2), description="one fewer than channels, each one number or one an axis"
    )
    residual_units: int = Field(2, ge=1, description="convolutions a residual unit of the encoder")
    init: Literal["kaiming", "default"] = Field("kaiming", description="see nets.base.initialise")


def build(params: Params, *, in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return the network: ``(B, in_channels, *S)`` -> logits ``(B, out_channels, *S)``."""
    return build_unet(
        params.channels,
        params.strides,
        params.residual_units,
        params.init,
        in_channels=in_channels,
        out_channels=out_channels,
        spatial_dims=spatial_dims,
    )


def stages(params: Params) -> dict[str, str]:
    """Return logical tap name -> place in the built network."""
    return unet_stages(params.channels, params.strides, residual=True)


def divisor(params: Params) -> int | tuple[int, ...]:
    """Return the number that patch sides are multiples of, per axis where strides are."""
    return unet_divisor(params.channels, params.strides)
