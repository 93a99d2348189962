"""UNet++, teacher of HLFD: nested U-Net with dense skips, 36.6 M parameters.

Source: Zhou et al., "UNet++: A Nested U-Net Architecture for Medical Image Segmentation" (DLMIA
2018) without deep supervision, in the form of HLFD's code (ISBI 2024): batch norm, ReLU, linear
upsampling with aligned corners instead of transposed convolutions. Deviation: none from that code.

Node ``x<i>_<j>`` is the j-th of level i (stride ``2^i``); it joins all nodes before it in its level
and the upsampled one below it. With the defaults: ``enc1..enc4`` = x0_0 to x3_0, 64, 128, 256, 512
channels at stride 1, 2, 4, 8; ``bottleneck`` = x4_0, 1024 at 16; ``dec1..dec4`` = x3_1, x2_2, x1_3,
x0_4, 512, 256, 128, 64 at 8, 4, 2, 1; the nodes between have their own names: ``x0_1``, ``x0_2``,
``x0_3``, ``x1_1``, ``x1_2``, ``x2_1``. ``penult``, the input of the head, is ``dec4``; ``pre_act``
is its last convolution before norm and activation.

HLFD's taps e1..e5, d5..d2 are method parameters: ``teacher_encoders: [enc2, enc3, x1_1, enc4,
bottleneck]`` and ``teacher_decoders: [x0_1, x0_2, x0_3, dec3]``.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdpipe.discover import Parameters
from kdpipe.nets._layers import Norm, Upsample, conv_block, layer
from kdpipe.nets.base import INPUT, initialise


class Params(Parameters):
    """Parameters of the network."""

    width: int = Field(64, ge=1, description="channels of the finest level, doubled at each next")
    depth: int = Field(5, ge=2, description="number of levels")
    norm: Literal["batch", "instance"] = Field("batch", description="normalisation")
    init: Literal["kaiming", "default"] = Field("default", description="see nets.base.initialise")


class NestedUNet(nn.Module):
    """``nodes`` by name, and ``head`` on the last node of the finest level."""

    def __init__(
        self,
        width: int,
        depth: int,
        norm: Norm,
        in_channels: int,
        out_channels: int,
        spatial_dims: int,
    ):
        super().__init__()
        self.depth = depth
        self.pool = layer("max_pool", spatial_dims)(2)
        self.up = Upsample(2, align_corners=True)
        self.nodes = nn.ModuleDict()
        for level in range(depth):
            own = width * 2**level
            for step in range(depth - level):
                inputs = step * own + 2 * own  # the nodes before it, and the one below
                if step == 0:
                    inputs = own // 2 if level else in_channels
                self.nodes[_node(level, step)] = conv_block(inputs, own, spatial_dims, norm)
        self.head = layer("conv", spatial_dims)(width, out_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(B, out_channels, *S)``."""
        levels: list[list[Tensor]] = []
        for diagonal in range(self.depth):  # down to level `diagonal`, and up to the finest
            entry = self.pool(levels[-1][0]) if levels else image
            levels.append([self.nodes[_node(diagonal, 0)](entry)])
            for step in range(1, diagonal + 1):
                level = diagonal - step
                joined = torch.cat([*levels[level], self.up(levels[level + 1][-1])], dim=1)
                levels[level].append(self.nodes[_node(level, step)](joined))
        logits: Tensor = self.head(levels[0][-1])
        return logits


def build(params: Params, *, in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return the network: ``(B, in_channels, *S)`` -> logits ``(B, out_channels, *S)``."""
    network = NestedUNet(
        params.width, params.depth, params.norm, in_channels, out_channels, spatial_dims
    )
    initialise(network, params.init)
    return network


def stages(params: Params) -> dict[str, str]:
    """Return logical tap name -> place in the built network."""
    ups = params.depth - 1
    places = {f"enc{level + 1}": _place(level, 0) for level in range(ups)}
    places["bottleneck"] = _place(ups, 0)
    places |= {f"dec{step}": _place(ups - step, step) for step in range(1, ups + 1)}
    inner = [(level, step) for level in range(ups) for step in range(1, ups - level)]
    places |= {_node(level, step): _place(level, step) for level, step in inner}
    last = f"{_place(0, ups)}.1.conv"
    return places | {"pre_act": last, "penult": f"head{INPUT}", "logits": "head"}


def divisor(params: Params) -> int:
    """Return the number that patch sides are multiples of."""
    return int(2 ** (params.depth - 1))


def _node(level: int, step: int) -> str:
    return f"x{level}_{step}"


def _place(level: int, step: int) -> str:
    return f"nodes.{_node(level, step)}"
