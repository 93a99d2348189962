"""ENet, the smallest student of EMKD and Graph Flow: bottlenecks and unpooling, 0.36 M parameters.

Source: Paszke et al., "ENet: a deep neural network architecture for real-time semantic
segmentation" (arXiv 1606.02147, 2016), in the form of the authors' Torch release: bottlenecks
(1x1, then 3x3, dilated 3x3 or asymmetric 5x5, then 1x1 convolution) of a quarter of the channels,
a PReLU weight for each channel in the encoder and ReLU in the decoder, dropout of whole channels
in the encoder, unpooling to where the encoder's max pooling found its maxima.
Deviations: no bias in front of a batch norm, which takes it off again; pooling and unpooling are
written out on windows, since torch's unpooling has no deterministic form; in 3D, three axes in
place of two. Graph Flow's ENet (0.349 M at 1 channel and 2 classes) narrows a down block to a
quarter of its input channels, here of its output channels.

With the defaults: ``enc1`` 16 channels at stride 2, ``enc2`` 64 at 4, ``enc3`` and ``bottleneck``
128 at 8; ``dec1`` 64 at 4, ``dec2`` 16 at 2, ``dec3`` = ``logits``; ``penult`` is ``dec2``.
``corrected``, also ``pre_act``, is the sum x + f(x) of the last bottleneck of ``dec2`` before its
ReLU, and ``correction`` is f(x).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from kdpipe.discover import Parameters
from kdpipe.errors import ConfigError
from kdpipe.nets._efficient import ConvPool, Sum, axis_conv, batch_norm, dropout
from kdpipe.nets._layers import layer
from kdpipe.nets.base import INPUT, initialise

Activation = Callable[[int], nn.Module]

ASYMMETRIC = 0  # in place of a dilation
SECTION = (1, 2, ASYMMETRIC, 4, 1, 8, ASYMMETRIC, 16)


class Params(Parameters):
    """Parameters of the network."""

    channels: tuple[int, int, int] = Field(
        (16, 64, 128), description="finest first, increasing multiples of 4"
    )
    dropout: tuple[float, float] = Field(
        (0.01, 0.1), description="rates in the encoder's second and its coarsest stages"
    )
    init: Literal["kaiming", "default"] = Field("default", description="see nets.base.initialise")


class Bottleneck(nn.Module):
    """``activation(x + f(x))``, f a 1x1 convolution, `middle` on fewer channels, and another 1x1.

    Args:
        channels: in and out; a quarter within.
        spatial_dims: 2 or 3.
        activation: makes one for a number of channels.
        dilation: of the 3-wide convolution; ASYMMETRIC for a 5-wide one, factorised by axes.
        rate: of the dropout.
    """

    def __init__(
        self,
        channels: int,
        spatial_dims: int,
        activation: Activation,
        dilation: int = 1,
        rate: float = 0.0,
    ):
        super().__init__()
        width, conv = channels // 4, layer("conv", spatial_dims)
        middle: nn.Module
        if dilation == ASYMMETRIC:
            axes = range(spatial_dims)
            middle = nn.Sequential(
                *(axis_conv(width, 5, axis, spatial_dims, bias=False) for axis in axes)
            )
        else:
            middle = conv(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        entry = conv(channels, width, 1, bias=False)
        self.residual = _residual(entry, middle, channels, spatial_dims, activation, rate)
        self.sum = Sum()
        self.activation = activation(channels)

    def forward(self, feature: Tensor) -> Tensor:
        """Return a feature of the same shape."""
        output: Tensor = self.activation(self.sum(feature, self.residual(feature)))
        return output


class DownBottleneck(nn.Module):
    """Halve the grid: max pooling, padded with empty channels, plus a bottleneck of stride 2."""

    def __init__(
        self, inputs: int, outputs: int, spatial_dims: int, activation: Activation, rate: float
    ):
        super().__init__()
        width, conv = outputs // 4, layer("conv", spatial_dims)
        entry = conv(inputs, width, 2, stride=2, bias=False)
        middle = conv(width, width, 3, padding=1, bias=False)
        self.residual = _residual(entry, middle, outputs, spatial_dims, activation, rate)
        self.added = outputs - inputs
        self.activation = activation(outputs)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output and, for `unpool`, where in its window each maximum lay."""
        maxima, winners = pool(feature)
        padded = functional.pad(maxima, [0, 0] * (feature.dim() - 2) + [0, self.added])
        return self.activation(padded + self.residual(feature)), winners


class UpBottleneck(nn.Module):
    """Double the grid: projected and unpooled, plus a bottleneck with a transposed convolution."""

    def __init__(self, inputs: int, outputs: int, spatial_dims: int, activation: Activation):
        super().__init__()
        width, conv = outputs // 4, layer("conv", spatial_dims)
        entry = conv(inputs, width, 1, bias=False)
        middle = layer("transposed", spatial_dims)(
            width, width, 3, stride=2, padding=1, output_padding=1, bias=False
        )
        self.projection = nn.Sequential(
            conv(inputs, outputs, 1, bias=False), batch_norm(outputs, spatial_dims)
        )
        self.residual = _residual(entry, middle, outputs, spatial_dims, activation, rate=0.0)
        self.activation = activation(outputs)

    def forward(self, feature: Tensor, winners: Tensor) -> Tensor:
        """Unpool to the places `winners`, as the `DownBottleneck` of the same grid gave them."""
        unpooled = unpool(self.projection(feature), winners)
        output: Tensor = self.activation(unpooled + self.residual(feature))
        return output


class ENet(nn.Module):
    """The network; see the file's docstring for its stages."""

    def __init__(self, params: Params, in_channels: int, out_channels: int, spatial_dims: int):
        super().__init__()
        fine, middle, coarse = params.channels
        dims, (low, high) = spatial_dims, params.dropout
        self.initial = ConvPool(in_channels, fine, dims, nn.PReLU(fine), bias=False)
        self.down1 = DownBottleneck(fine, middle, dims, nn.PReLU, low)
        self.stage1 = nn.Sequential(
            *(Bottleneck(middle, dims, nn.PReLU, rate=low) for _ in range(4))
        )
        self.down2 = DownBottleneck(middle, coarse, dims, nn.PReLU, high)
        self.stage2, self.stage3 = (
            nn.Sequential(*(Bottleneck(coarse, dims, nn.PReLU, step, high) for step in SECTION))
            for _ in range(2)
        )
        self.up4 = UpBottleneck(coarse, middle, dims, _relu)
        self.stage4 = nn.Sequential(*(Bottleneck(middle, dims, _relu) for _ in range(2)))
        self.up5 = UpBottleneck(middle, fine, dims, _relu)
        self.stage5 = Bottleneck(fine, dims, _relu)
        self.head = layer("transposed", dims)(fine, out_channels, 2, stride=2)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        feature, fine_winners = self.down1(self.initial(image))
        feature, coarse_winners = self.down2(self.stage1(feature))
        feature = self.stage3(self.stage2(feature))
        feature = self.stage4(self.up4(feature, coarse_winners))
        logits: Tensor = self.head(self.stage5(self.up5(feature, fine_winners)))
        return logits


def build(params: Params, *, in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return the network: ``(B, in_channels, *S)`` -> logits ``(B, out_channels, *S)``."""
    channels = params.channels
    if list(channels) != sorted(set(channels)) or any(count % 4 for count in channels):
        raise ConfigError(
            f"enet: channels {list(channels)} must increase and be multiples of 4, since a "
            "bottleneck works on a quarter; take for example [16, 64, 128]"
        )
    network = ENet(params, in_channels, out_channels, spatial_dims)
    initialise(network, params.init)
    return network


def stages(params: Params) -> dict[str, str]:
    """Return logical tap name -> place in the built network."""
    return {
        "enc1": "initial",
        "enc2": "stage1",
        "enc3": "stage2",
        "bottleneck": "stage3",
        "dec1": "stage4",
        "dec2": "stage5",
        "dec3": "head",
        "pre_act": "stage5.sum",
        "corrected": "stage5.sum",
        "correction": "stage5.residual",
        "penult": f"head{INPUT}",
        "logits": "head",
    }


def divisor(params: Params) -> int:
    """Return the number that patch sides are multiples of."""
    return 8


def pool(feature: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum of each window of side 2, and its place 0..2^d-1 in the window."""
    dims = feature.dim() - 2
    halves = [count for side in feature.shape[2:] for count in (side // 2, 2)]
    windows = feature.reshape(*feature.shape[:2], *halves)
    order = [0, 1, *range(2, 2 + 2 * dims, 2), *range(3, 3 + 2 * dims, 2)]
    maxima, winners = windows.permute(order).flatten(2 + dims).max(dim=-1)
    return maxima, winners


def unpool(feature: Tensor, winners: Tensor) -> Tensor:
    """Invert `pool`: each value at the place of its window's maximum, zeros elsewhere."""
    dims = feature.dim() - 2
    empty = feature.new_zeros(*feature.shape, 2**dims)
    windows = empty.scatter(-1, winners.unsqueeze(-1), feature.unsqueeze(-1))
    halves = windows.reshape(*feature.shape, *[2] * dims)
    order = [axis for place in range(dims) for axis in (2 + place, 2 + dims + place)]
    sides = [2 * side for side in feature.shape[2:]]
    return halves.permute(0, 1, *order).reshape(*feature.shape[:2], *sides)


def _residual(
    entry: nn.Module,
    middle: nn.Module,
    outputs: int,
    dims: int,
    activation: Activation,
    rate: float,
) -> nn.Sequential:
    width = outputs // 4
    return nn.Sequential(
        entry,
        batch_norm(width, dims),
        activation(width),
        middle,
        batch_norm(width, dims),
        activation(width),
        layer("conv", dims)(width, outputs, 1, bias=False),
        batch_norm(outputs, dims),
        dropout(rate, dims),
    )


def _relu(channels: int) -> nn.Module:
    return nn.ReLU()
