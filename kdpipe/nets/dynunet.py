"""DynUNet, nnU-Net's plain U-Net in MONAI's form: 31.2 M parameters with six levels.

Source: Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image
segmentation" (Nature Methods 2021), in the form of MONAI's ``DynUNet``: two convolutions a level,
instance norm, leaky ReLU, strided convolutions down, transposed ones up. Kernels and strides may
differ by level and axis, as nnU-Net plans them for anisotropic voxels. Deviations: MONAI's, no bias
before a norm and in transposed convolutions; no deep supervision, so that all methods train on one
output. The start ``default`` is MONAI's: He's normal for a slope of 0.01.

With the defaults: ``enc1..enc5`` 32, 64, 128, 256, 320 channels at stride 1, 2, 4, 8, 16;
``bottleneck`` 320 at 32; ``dec1..dec5`` 320, 256, 128, 64, 32 at 16, 8, 4, 2, 1. ``pre_act`` is the
last convolution of ``dec5``, ``penult`` the head's input, ``dec5`` itself. In 2D channels grow up
to 512.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from kdpipe.discover import Parameters
from kdpipe.nets._levels import check_levels, level_channels, level_kernels, level_strides
from kdpipe.nets._strides import reduction
from kdpipe.nets.base import INPUT, initialise


class Params(Parameters):
    """Parameters of the network."""

    strides: tuple[int | tuple[int, ...], ...] = Field(
        (2, 2, 2, 2, 2), min_length=2, description="between levels, finest first; an axis if lists"
    )
    kernels: tuple[int | tuple[int, ...], ...] | None = Field(
        None, description="of each level; an axis if lists; null: 3"
    )
    channels: tuple[int, ...] | None = Field(
        None, description="of each level; null: 32, doubled at each up to 320 (2D: 512)"
    )
    residual: bool = Field(False, description="residual blocks in the encoder")
    init: Literal["kaiming", "default"] = Field("default", description="see nets.base.initialise")


def build(params: Params, *, in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return the network: ``(B, in_channels, *S)`` -> logits ``(B, out_channels, *S)``."""
    from monai.networks.nets.dynunet import DynUNet  # costs seconds

    _check(params, spatial_dims)
    levels = len(params.strides) + 1
    network = DynUNet(
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=level_kernels(params.kernels, levels),
        strides=level_strides(params.strides),
        upsample_kernel_size=params.strides,
        filters=level_channels(params.channels, levels, spatial_dims),
        res_block=params.residual,
    )
    initialise(network, params.init)
    return network


def stages(params: Params) -> dict[str, str]:
    """Return logical tap name -> place in the built network."""
    _check(params)
    ups = len(params.strides)
    places = {"enc1": "input_block"}
    places |= {f"enc{level + 1}": f"downsamples.{level - 1}" for level in range(1, ups)}
    places["bottleneck"] = "bottleneck"
    places |= {f"dec{step + 1}": f"upsamples.{step}" for step in range(ups)}
    return places | {
        "pre_act": f"upsamples.{ups - 1}.conv_block.conv2",
        "penult": f"output_block{INPUT}",
        "logits": "output_block",
    }


def divisor(params: Params) -> int | tuple[int, ...]:
    """Return the number that patch sides are multiples of, one a side where strides differ."""
    _check(params)
    return reduction(params.strides)


def _check(params: Params, spatial_dims: int | None = None) -> None:
    check_levels(params.strides, spatial_dims, params.kernels, channels=params.channels)
