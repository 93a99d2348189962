"""Shared by ENet and ERFNet: their downsampler, their factorised convolution, their residual sum.

Both come from real-time segmentation: they halve the grid early, with a strided convolution beside
a max pooling, and split a wide convolution into one for each axis. Batch norm has eps 1e-3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdpipe.errors import ConfigError
from kdpipe.nets._layers import layer


class ConvPool(nn.Module):
    """Half the grid: a 3-wide convolution of stride 2 beside a max pooling, concatenated.

    The pooling passes the `inputs` channels on, the convolution gives the rest of `outputs`.
    """

    def __init__(
        self, inputs: int, outputs: int, spatial_dims: int, activation: nn.Module, bias: bool
    ):
        super().__init__()
        if outputs <= inputs:
            raise ConfigError(
                f"a block of {outputs} channels passes its {inputs} input channels on and adds its "
                f"own: take `channels` that increase, and more than {inputs} in the first stage"
            )
        self.conv = layer("conv", spatial_dims)(
            inputs, outputs - inputs, 3, stride=2, padding=1, bias=bias
        )
        self.pool = layer("max_pool", spatial_dims)(2)
        self.norm = batch_norm(outputs, spatial_dims)
        self.activation = activation

    def forward(self, feature: Tensor) -> Tensor:
        both = torch.cat([self.conv(feature), self.pool(feature)], dim=1)
        output: Tensor = self.activation(self.norm(both))
        return output


class Sum(nn.Module):
    """Add the residual to the shortcut, as a module, so that the sum can be recorded."""

    def forward(self, shortcut: Tensor, residual: Tensor) -> Tensor:
        return shortcut + residual


def axis_conv(
    channels: int, kernel: int, axis: int, spatial_dims: int, *, dilation: int = 1, bias: bool
) -> nn.Module:
    """Return a convolution that is `kernel` wide along one axis, 1 along others; grid is kept."""
    along = [int(other == axis) for other in range(spatial_dims)]
    return layer("conv", spatial_dims)(
        channels,
        channels,
        tuple(kernel if here else 1 for here in along),
        padding=tuple(dilation * (kernel // 2) * here for here in along),
        dilation=tuple(dilation if here else 1 for here in along),
        bias=bias,
    )


def batch_norm(channels: int, spatial_dims: int) -> nn.Module:
    """Return the batch norm of both networks."""
    return layer("batch", spatial_dims)(channels, eps=1e-3)


def dropout(rate: float, spatial_dims: int) -> nn.Module:
    """Return dropout of whole channels."""
    return nn.Dropout2d(rate) if spatial_dims == 2 else nn.Dropout3d(rate)
