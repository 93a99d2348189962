"""Blocks of ESPNetv2 in 2D and 3D: dilated pyramids, reinforced down-sampling, pyramid pooling.

Source: Mehta et al., "ESPNetv2: A light-weight, power efficient, and general purpose convolutional
neural network" (CVPR 2019), and the decoder of its authors' EdgeNets code. Batch norm and PReLU
with one slope a channel throughout; convolutions without bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdpipe.nets._layers import Upsample, conv_norm, layer, norm_layer, resize
from kdpipe.nets._pool import HalvingAverage

BRANCHES = 4
SCALES = (2.0, 1.5, 1.0, 0.5, 0.1)
LEAST_SIDE = 5  # of a grid within the pyramid pooling


def conv_norm_prelu(
    inputs: int, outputs: int, kernel: int, spatial_dims: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Return convolution, batch norm and PReLU."""
    block = conv_norm(
        inputs, outputs, kernel, spatial_dims, stride=stride, groups=groups, activation=None
    )
    block.add_module("activation", nn.PReLU(outputs))
    return block


def norm_prelu(channels: int, spatial_dims: int) -> nn.Sequential:
    """Return batch norm and PReLU."""
    return nn.Sequential(norm_layer("batch", channels, spatial_dims), nn.PReLU(channels))


def dilations(reach: int) -> list[int]:
    """Return the branches' dilations, ascending: 1 to 4, but 1 where it exceeds `reach` voxels."""
    return sorted(step if 2 * step + 1 <= reach else 1 for step in range(1, BRANCHES + 1))


class DilatedPyramid(nn.Module):
    """Dilated depth-wise convolutions side by side, summed up hierarchically (EESP).

    A grouped 1-wide convolution reduces to a quarter of the channels, four branches filter them,
    branch k is added to the sum of those before it, and a grouped 1-wide convolution merges the
    concatenated sums. The output is normalised, not activated.

    Args:
        inputs: channels that enter, a multiple of 4.
        outputs: channels that leave, a multiple of 16.
        spatial_dims: 2 or 3.
        reach: widest dilated kernel, in voxels.
        stride: of the branches.
    """

    def __init__(self, inputs: int, outputs: int, spatial_dims: int, reach: int, stride: int = 1):
        super().__init__()
        width = outputs // BRANCHES
        conv = layer("conv", spatial_dims)
        self.reduce = conv_norm_prelu(inputs, width, 1, spatial_dims, groups=BRANCHES)
        self.branches = nn.ModuleList(
            conv(width, width, 3, stride, step, dilation=step, groups=width, bias=False)
            for step in dilations(reach)
        )
        self.merge = nn.Sequential(
            norm_prelu(outputs, spatial_dims),
            conv_norm(outputs, outputs, 1, spatial_dims, groups=BRANCHES, activation=None),
        )

    def forward(self, feature: Tensor) -> Tensor:
        reduced = self.reduce(feature)
        sums = accumulate(branch(reduced) for branch in self.branches)
        merged: Tensor = self.merge(torch.cat(list(sums), 1))
        return merged


class ResidualPyramid(nn.Module):
    """``prelu(x + pyramid(x))``."""

    def __init__(self, channels: int, spatial_dims: int, reach: int):
        super().__init__()
        self.pyramid = DilatedPyramid(channels, channels, spatial_dims, reach)
        self.activation = nn.PReLU(channels)

    def forward(self, feature: Tensor) -> Tensor:
        output: Tensor = self.activation(feature + self.pyramid(feature))
        return output


class Down(nn.Module):
    """Halve the grid, with a shortcut from the image ("input reinforcement").

    ``prelu([pool(x), pyramid(x)] + project(image pooled to the same grid))``.

    Args:
        inputs: channels that enter.
        outputs: channels that leave; those beyond `inputs` come from the pyramid.
        in_channels: channels of the image.
        spatial_dims: 2 or 3.
        reach: see `DilatedPyramid`.
        stride: of the output to the image, a power of two.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        in_channels: int,
        spatial_dims: int,
        reach: int,
        stride: int,
    ):
        super().__init__()
        self.halvings = stride.bit_length() - 1
        self.pool = HalvingAverage(3)
        self.pyramid = DilatedPyramid(inputs, outputs - inputs, spatial_dims, reach, stride=2)
        self.reinforce = nn.Sequential(
            conv_norm_prelu(in_channels, in_channels, 3, spatial_dims),
            conv_norm(in_channels, outputs, 1, spatial_dims, activation=None),
        )
        self.activation = nn.PReLU(outputs)

    def forward(self, feature: Tensor, image: Tensor) -> Tensor:
        for _ in range(self.halvings):
            image = self.pool(image)
        halved = torch.cat([self.pool(feature), self.pyramid(feature)], 1)
        output: Tensor = self.activation(halved + self.reinforce(image))
        return output


class GatedProjection(nn.Module):
    """Project an encoder feature for the decoder: grouped convolution times a channel gate."""

    def __init__(self, inputs: int, outputs: int, spatial_dims: int):
        super().__init__()
        groups = math.gcd(inputs, outputs)
        self.conv = conv_norm_prelu(inputs, outputs, 3, spatial_dims, groups=groups)
        self.gate = nn.Sequential(
            layer("average_pool", spatial_dims)(1),
            layer("conv", spatial_dims)(inputs, outputs, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, feature: Tensor) -> Tensor:
        output: Tensor = self.conv(feature) * self.gate(feature)
        return output


class Merge(nn.Module):
    """``prelu(norm(up(x) + project(skip)))``: a decoder feature on the grid of its skip."""

    def __init__(self, channels: int, skip_channels: int, spatial_dims: int):
        super().__init__()
        self.up = Upsample(2, align_corners=True)
        self.project = GatedProjection(skip_channels, channels, spatial_dims)
        self.activation = norm_prelu(channels, spatial_dims)

    def forward(self, feature: Tensor, skip: Tensor) -> Tensor:
        output: Tensor = self.activation(self.up(feature) + self.project(skip))
        return output


class PyramidPool(nn.Module):
    """Filter at five scales of the grid, then merge the scales channel by channel.

    Args:
        inputs: channels that enter.
        width: channels at each scale.
        outputs: channels that leave.
        spatial_dims: 2 or 3.
        head: end with a biased convolution, without norm and activation.
    """

    def __init__(self, inputs: int, width: int, outputs: int, spatial_dims: int, head: bool):
        super().__init__()
        conv = layer("conv", spatial_dims)
        joined = width * len(SCALES)
        self.reduce = conv_norm_prelu(inputs, width, 1, spatial_dims)
        self.scales = nn.ModuleList(
            conv(width, width, 3, padding=1, groups=width, bias=False) for _ in SCALES
        )
        self.activation = norm_prelu(joined, spatial_dims)
        self.merge = conv_norm_prelu(joined, width, 3, spatial_dims, groups=width)
        self.expand = nn.Sequential(conv(width, outputs, 1, bias=head))
        if not head:
            self.expand.extend(norm_prelu(outputs, spatial_dims))

    def forward(self, feature: Tensor) -> Tensor:
        reduced = self.reduce(feature)
        views = [
            _filter_at(scale, conv, reduced)
            for scale, conv in zip(SCALES, self.scales, strict=True)
        ]
        joined = self.activation(torch.cat(views, 1))
        # channels in the order (channel, scale), so that a group merges the scales of one channel
        shuffled = joined.unflatten(1, (len(SCALES), -1)).transpose(1, 2).flatten(1, 2)
        output: Tensor = self.expand(self.merge(shuffled))
        return output


def _filter_at(scale: float, conv: nn.Module, feature: Tensor) -> Tensor:
    """Apply `conv` on a grid `scale` times as fine; the output is on the grid of `feature`."""
    grid = feature.shape[2:]
    scaled = [max(LEAST_SIDE, math.ceil(side * scale)) for side in grid]
    if scale > 1:
        return _pool(conv(resize(feature, scaled, align_corners=True)), grid)
    if scale < 1:
        return resize(conv(_pool(feature, scaled)), grid, align_corners=True)
    same: Tensor = conv(feature)
    return same


def _pool(feature: Tensor, size: Sequence[int]) -> Tensor:
    if len(size) == 2:
        return functional.adaptive_avg_pool2d(feature, (size[0], size[1]))
    return functional.adaptive_avg_pool3d(feature, (size[0], size[1], size[2]))
