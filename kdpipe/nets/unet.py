"""U-Net of any width and depth in 2D or 3D, with the defaults HLFD's plain one, 34.5 M parameters.

Source: Ronneberger, Fischer, Brox, "U-Net" (MICCAI 2015), with the defaults in the form of HLFD's
code (ISBI 2024): batch norm, ReLU, max pooling, nearest-neighbour upsampling with a 3-wide
convolution instead of a transposed one, zero padding instead of cropping. Deviations: none from
that code. Strides per axis suit anisotropic volumes (Isensee et al., "nnU-Net", Nature Methods
2021); of nnU-Net's networks it differs in pooling, and in having no limit of channels.

With the defaults: ``enc1..enc4`` 64, 128, 256, 512 channels at stride 1, 2, 4, 8; ``bottleneck``
1024 at 16; ``dec1..dec4`` 512, 256, 128, 64 at 8, 4, 2, 1. ``penult``, the input of the head, is
``dec4``; ``pre_act`` is its last convolution before norm and activation. HLFD's e1..e5 and d5..d2
are these, in this order.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from kdpipe.discover import Parameters
from kdpipe.nets._layers import UpBlock, conv_block, layer
from kdpipe.nets._strides import Strides, check_strides, reduction
from kdpipe.nets.base import INPUT, initialise


class Params(Parameters):
    """Parameters of the network."""

    width: int = Field(64, ge=1, description="channels of the finest level, doubled at each next")
    depth: int = Field(5, ge=2, description="number of levels")
    convolutions: int = Field(2, ge=1, description="of each block")
    norm: Literal["batch", "instance"] = Field("batch", description="normalisation")
    upsampling: Literal["transposed", "interpolate"] = Field(
        "interpolate", description="transposed convolution, or nearest neighbour and a convolution"
    )
    strides: tuple[int | tuple[int, ...], ...] | None = Field(
        None, description="between levels, finest first, each one number or one an axis; null: 2"
    )
    init: Literal["kaiming", "default"] = Field("default", description="see nets.base.initialise")


class UNet(nn.Module):
    """``encoder`` of pooled blocks, ``decoder`` of `UpBlock`, coarsest first, and ``head``."""

    def __init__(self, params: Params, in_channels: int, out_channels: int, dims: int):
        super().__init__()
        strides = _strides(params)
        widths = [params.width * 2**level for level in range(params.depth)]
        norm, count = params.norm, params.convolutions
        self.encoder = nn.ModuleList([conv_block(in_channels, widths[0], dims, norm, count)])
        self.decoder = nn.ModuleList()
        for stride, fine, coarse in zip(strides, widths, widths[1:], strict=False):
            pool = layer("max_pool", dims)(stride)
            self.encoder.append(nn.Sequential(pool, conv_block(fine, coarse, dims, norm, count)))
            up = UpBlock(
                coarse,
                fine,
                fine,
                dims,
                norm,
                stride=stride,
                convolutions=count,
                upsampling=params.upsampling,
            )
            self.decoder.insert(0, up)
        self.head = layer("conv", dims)(widths[0], out_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(B, out_channels, *S)``."""
        skips, feature = [], image
        for block in self.encoder:
            feature = block(feature)
            skips.append(feature)
        for up, skip in zip(self.decoder, skips[-2::-1], strict=True):
            feature = up(feature, skip)
        logits: Tensor = self.head(feature)
        return logits


def build(params: Params, *, in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return the network: ``(B, in_channels, *S)`` -> logits ``(B, out_channels, *S)``."""
    check_strides(_strides(params), params.depth, spatial_dims)
    network = UNet(params, in_channels, out_channels, spatial_dims)
    initialise(network, params.init)
    return network


def stages(params: Params) -> dict[str, str]:
    """Return logical tap name -> place in the built network."""
    check_strides(_strides(params), params.depth)
    ups = params.depth - 1
    places = {f"enc{level + 1}": f"encoder.{level}" for level in range(ups)}
    places["bottleneck"] = f"encoder.{ups}"
    places |= {f"dec{step + 1}": f"decoder.{step}" for step in range(ups)}
    last = f"decoder.{ups - 1}.block.{params.convolutions - 1}"
    return places | {"pre_act": f"{last}.conv", "penult": f"head{INPUT}", "logits": "head"}


def divisor(params: Params) -> int | tuple[int, ...]:
    """Return the number that patch sides are multiples of, per axis where strides are."""
    strides = _strides(params)
    check_strides(strides, params.depth)
    return reduction(strides)


def _strides(params: Params) -> Strides:
    return (2,) * (params.depth - 1) if params.strides is None else params.strides
