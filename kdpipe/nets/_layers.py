"""Shared by several networks: torch's layers in 2D and 3D, normalised convolutions, up stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Norm = Literal["batch", "instance"]
Upsampling = Literal["transposed", "interpolate"]
Sides = int | Sequence[int]

_LAYERS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "conv": (nn.Conv2d, nn.Conv3d),
    "transposed": (nn.ConvTranspose2d, nn.ConvTranspose3d),
    "max_pool": (nn.MaxPool2d, nn.MaxPool3d),
    "average_pool": (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    "batch": (nn.BatchNorm2d, nn.BatchNorm3d),
    "instance": (nn.InstanceNorm2d, nn.InstanceNorm3d),
}


def layer(kind: str, spatial_dims: int) -> type[nn.Module]:
    """Return torch's 2D or 3D layer: conv, transposed, max_pool, average_pool, batch, instance."""
    return _LAYERS[kind][spatial_dims - 2]


def norm_layer(norm: Norm, channels: int, spatial_dims: int) -> nn.Module:
    """Return a normalisation with a trained scale and shift."""
    return layer(norm, spatial_dims)(channels, affine=True)


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int,
    spatial_dims: int,
    norm: Norm = "batch",
    *,
    stride: Sides = 1,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = False,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Return ``conv``, ``norm`` and, unless None, ``activation``; at stride 1 the grid is kept."""
    block = nn.Sequential()
    convolution = layer("conv", spatial_dims)(
        inputs,
        outputs,
        kernel,
        stride=stride if isinstance(stride, int) else tuple(stride),
        padding=dilation * (kernel // 2),
        dilation=dilation,
        groups=groups,
        bias=bias,
    )
    block.add_module("conv", convolution)
    block.add_module("norm", norm_layer(norm, outputs, spatial_dims))
    if activation is not None:
        block.add_module("activation", activation())
    return block


def conv_block(
    inputs: int, outputs: int, spatial_dims: int, norm: Norm, convolutions: int = 2
) -> nn.Sequential:
    """Return 3-wide convolutions, each normalised and rectified: the block of a U-Net."""
    channels = [inputs, *[outputs] * convolutions]
    return nn.Sequential(
        *(
            conv_norm(before, after, 3, spatial_dims, norm, bias=True)
            for before, after in zip(channels, channels[1:], strict=False)
        )
    )


class UpBlock(nn.Module):
    """Decoder stage of a U-Net: up, joined to the skip, convolved.

    Args:
        inputs: channels of the coarser map.
        skip: channels of the encoder's map.
        outputs: channels that leave, and those after `up`.
        spatial_dims: 2 or 3.
        norm: batch or instance.
        stride: between the two grids, one for all axes or one for each.
        convolutions: of the block.
        upsampling: ``transposed``: a transposed convolution as wide as the stride;
            ``interpolate``: nearest neighbour, and a 3-wide convolution.
    """

    def __init__(
        self,
        inputs: int,
        skip: int,
        outputs: int,
        spatial_dims: int,
        norm: Norm = "batch",
        *,
        stride: Sides = 2,
        convolutions: int = 2,
        upsampling: Upsampling = "interpolate",
    ):
        super().__init__()
        strides = (stride,) * spatial_dims if isinstance(stride, int) else tuple(stride)
        if upsampling == "transposed":
            self.up = layer("transposed", spatial_dims)(inputs, outputs, strides, stride=strides)
        else:
            self.up = nn.Sequential(
                nn.Upsample(scale_factor=strides),
                conv_norm(inputs, outputs, 3, spatial_dims, norm, bias=True),
            )
        self.block = conv_block(skip + outputs, outputs, spatial_dims, norm, convolutions)

    def forward(self, feature: Tensor, skip: Tensor) -> Tensor:
        output: Tensor = self.block(torch.cat([skip, self.up(feature)], dim=1))
        return output


class Upsample(nn.Module):
    """Interpolate linearly by a factor, one for all axes or one for each, without weights."""

    def __init__(self, factor: Sides, align_corners: bool = False):
        super().__init__()
        self.factor = factor
        self.align_corners = align_corners

    def forward(self, feature: Tensor) -> Tensor:
        """Return ``(B, c, *s)`` on a grid `factor` times as fine."""
        sides = feature.shape[2:]
        factors = (self.factor,) * len(sides) if isinstance(self.factor, int) else self.factor
        size = [side * factor for side, factor in zip(sides, factors, strict=True)]
        return resize(feature, size, self.align_corners)

    def extra_repr(self) -> str:
        """Return what is shown of the layer."""
        return f"factor={self.factor}, align_corners={self.align_corners}"


def resize(feature: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Interpolate ``(B, c, *s)`` linearly to the grid `size`, in 2D or 3D."""
    mode = "bilinear" if feature.dim() == 4 else "trilinear"
    return functional.interpolate(feature, tuple(size), mode=mode, align_corners=align_corners)


def replicated(image: Tensor, channels: int) -> Tensor:
    """Repeat a grey image ``(B, 1, *S)`` to `channels`; an image of as many channels stays."""
    return image.expand(-1, channels, *image.shape[2:])
