"""LCOV-Net, a student of ACF-BCKD: separable 3D convolutions with a gate, 0.82 M parameters.

Source: Zhao et al., "LCOV-Net: A lightweight neural network for COVID-19 pneumonia lesion
segmentation from 3D CT images" (ISBI 2021), in the form used as a student by ACF-BCKD (Expert
Systems with Applications 2025), which has widths 16 to 256, no dropout and no bias. Each block
convolves across slices, then within them, next to a gate. No deviation from that form. Only 3D,
with the slices on the last axis.

``unused_heads`` are the three heads for deep supervision that the published network builds and
does not apply; they are here so that its parameters are as many as published.

With the defaults: ``enc1..enc4`` 16, 32, 64, 128 channels at stride 1, 2, 4, 8; ``bottleneck`` 256
at 16; ``dec1`` 128 at 8; ``dec2`` 64 at 4; ``dec3`` 32 at 2; ``dec4`` 16 at 1, which is also
``pre_act``, ACF-BCKD's place, and ``penult``, the input of the head.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdpipe.discover import Parameters
from kdpipe.errors import ConfigError
from kdpipe.nets._layers import Upsample, conv_norm
from kdpipe.nets._pool import HalvingAverage
from kdpipe.nets.base import INPUT, initialise

DIMS = (3,)

ACROSS_SLICES = (1, 1, 3)
WITHIN_SLICES = (3, 3, 1)


class Params(Parameters):
    """Parameters of the network."""

    channels: tuple[int, ...] = Field(
        (16, 32, 64, 128, 256), min_length=2, description="finest first, the bottleneck last"
    )
    init: Literal["kaiming", "default"] = Field("kaiming", description="see nets.base.initialise")


class GatedBlock(nn.Module):
    """``within(x) + gate(x) * x`` with ``x = across(input)``, the block's separable convolutions.

    The gate, in (0, 1), is drawn from features pooled to half the grid; in the bottleneck it is not
    pooled, and the convolution within slices is depth-wise.
    """

    def __init__(self, inputs: int, outputs: int, bottleneck: bool = False):
        super().__init__()
        self.across = _separable(inputs, outputs, ACROSS_SLICES)
        groups = outputs if bottleneck else 1
        self.within = _separable(outputs, outputs, WITHIN_SLICES, groups)
        if bottleneck:
            calibrate = conv_norm(outputs, outputs, 1, 3, activation=nn.ReLU6)
            self.gate = nn.Sequential(calibrate, nn.Sigmoid())
        else:
            calibrate = conv_norm(outputs, outputs, 1, 3, activation=None)
            self.gate = nn.Sequential(HalvingAverage(4), calibrate, Upsample(2), nn.Sigmoid())

    def forward(self, feature: Tensor) -> Tensor:
        """Apply both convolutions and the gate; the grid is kept."""
        feature = self.across(feature)
        output: Tensor = self.within(feature) + self.gate(feature) * feature
        return output


class Up(nn.Module):
    """``block([up(reduce(x)), skip])``."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.reduce = conv_norm(inputs, outputs, 1, 3, activation=nn.ReLU6)
        self.up = Upsample(2)
        self.block = GatedBlock(2 * outputs, outputs)

    def forward(self, feature: Tensor, skip: Tensor) -> Tensor:
        """Double the grid of `feature` and merge it with `skip`."""
        raised = self.up(self.reduce(feature))
        output: Tensor = self.block(torch.cat([raised, skip], 1))
        return output


class LCOVNet(nn.Module):
    """See the description of this file."""

    def __init__(self, params: Params, in_channels: int, out_channels: int):
        super().__init__()
        *widths, deepest = params.channels
        self.encoder = nn.ModuleList(
            GatedBlock(inputs, outputs)
            for inputs, outputs in zip((in_channels, *widths), widths, strict=False)
        )
        self.pool = nn.MaxPool3d(2)
        self.bottleneck = GatedBlock(widths[-1], deepest, bottleneck=True)
        self.decoder = nn.ModuleList(
            Up(inputs, outputs)
            for inputs, outputs in zip((deepest, *widths[::-1]), widths[::-1], strict=False)
        )
        self.head = nn.Conv3d(widths[0], out_channels, 1, bias=False)
        self.unused_heads = nn.ModuleList(
            nn.Conv3d(width, out_channels, 1, bias=False) for width in widths[:0:-1]
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        feature = image
        skips = []
        for block in self.encoder:
            skips.append(block(feature))
            feature = self.pool(skips[-1])
        feature = self.bottleneck(feature)
        for up in self.decoder:
            feature = up(feature, skips.pop())
        logits: Tensor = self.head(feature)
        return logits


def build(params: Params, *, in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return the network: ``(B, in_channels, *S)`` -> logits ``(B, out_channels, *S)``."""
    _check(params)
    network = LCOVNet(params, in_channels, out_channels)
    initialise(network, params.init)
    return network


def stages(params: Params) -> dict[str, str]:
    """Return logical tap name -> place in the built network."""
    _check(params)
    steps = range(len(params.channels) - 1)
    return {
        **{f"enc{step + 1}": f"encoder.{step}" for step in steps},
        "bottleneck": "bottleneck",
        **{f"dec{step + 1}": f"decoder.{step}" for step in steps},
        "pre_act": f"decoder.{steps[-1]}",
        "penult": f"head{INPUT}",
        "logits": "head",
    }


def divisor(params: Params) -> int:
    """Return the number that patch sides are multiples of."""
    _check(params)
    return int(2 ** (len(params.channels) - 1))


def _separable(
    inputs: int, outputs: int, kernel: tuple[int, int, int], groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, kernel, padding="same", groups=groups, bias=False),
        nn.BatchNorm3d(outputs),
        nn.ReLU6(),
    )


def _check(params: Params) -> None:
    if min(params.channels) < 1:
        raise ConfigError(f"lcovnet: channels {list(params.channels)} must all be 1 or more")
