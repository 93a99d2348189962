"""U-Net student of ACF-BCKD: MONAI's U-Net without residual units, 2 M parameters.

Source: Çiçek et al., "3D U-Net" (MICCAI 2016), in the form of MONAI's ``UNet`` as used as a student
by ACF-BCKD (Expert Systems with Applications 2025): one strided 3-wide convolution a level, a
transposed convolution up, instance norm, PReLU. The stem strides too, so the finest encoder map has
half the resolution of the image; the last up layer is a bare transposed convolution. Deviation: the
skip comes before the decoder in a concatenation (MONAI's order), the other way round in the
official copy; the two differ by a permutation of weights only.

With the defaults: ``enc1..enc3`` 32, 64, 128 channels at stride 2, 4, 8; ``bottleneck`` 256 at 8;
``dec1`` 64 at 4; ``dec2`` 32 at 2; ``dec3`` = ``logits``; ``penult`` 64 at 2. ``pre_act`` is the
raw transposed convolution of ``dec2``: the student's tap in ACF-BCKD.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from kdpipe.discover import Parameters
from kdpipe.nets._unet import build_unet, unet_divisor, unet_stages


class Params(Parameters):
    """Parameters of the network."""

    channels: tuple[int, ...] = Field((32, 64, 128, 256), min_length=3, description="finest first")
    strides: tuple[int | tuple[int, ...], ...] = Field(
        (2, 2, 2), description="one fewer than channels, each one number or one an axis"
    )
    init: Literal["kaiming", "default"] = Field("kaiming", description="see nets.base.initialise")


def build(params: Params, *, in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return the network: ``(B, in_channels, *S)`` -> logits ``(B, out_channels, *S)``."""
    return build_unet(
        params.channels,
        params.strides,
        0,
        params.init,
        in_channels=in_channels,
        out_channels=out_channels,
        spatial_dims=spatial_dims,
    )


def stages(params: Params) -> dict[str, str]:
    """Return logical tap name -> place in the built network."""
    return unet_stages(params.channels, params.strides, residual=False)


def divisor(params: Params) -> int | tuple[int, ...]:
    """Return the number that patch sides are multiples of, per axis where strides are."""
    return unet_divisor(params.channels, params.strides)
