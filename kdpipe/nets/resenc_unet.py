"""Residual encoder U-Net of nnU-Net, a deep encoder with a light decoder: 102 M parameters.

Source: Isensee et al., "nnU-Net revisited: a call for rigorous validation in 3D medical image
segmentation" (MICCAI 2024), from nnU-Net's package ``dynamic_network_architectures`` (the extra
``nnunet``): a stem, residual blocks (ResNet-D: shortcuts pool by averages), instance norm, leaky
ReLU, one convolution a level in the decoder. The defaults are its plan for patches of six levels
(ResEnc M and L, which differ in patch and batch). Deviation: the heads for deep supervision, which
nnU-Net builds always, are left out, since all methods train on one output. The start ``default`` is
nnU-Net's: He's normal for a slope of 0.01, the last norm of each residual block 0.

With the defaults: ``enc1..enc5`` 32, 64, 128, 256, 320 channels at stride 1, 2, 4, 8, 16;
``bottleneck`` 320 at 32; ``dec1..dec5`` 320, 256, 128, 64, 32 at 16, 8, 4, 2, 1. ``pre_act`` is the
last convolution of ``dec5``, ``penult`` the head's input, ``dec5`` itself. In 2D channels grow up
to 512.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import nn

from kdpipe.discover import Parameters
from kdpipe.errors import ConfigError
from kdpipe.nets._levels import check_levels, level_channels, level_kernels, level_strides
from kdpipe.nets._strides import reduction
from kdpipe.nets.base import INPUT, initialise


class Params(Parameters):
    """Parameters of the network."""

    strides: tuple[int | tuple[int, ...], ...] = Field(
        (2, 2, 2, 2, 2), min_length=1, description="between levels, finest first; an axis if lists"
    )
    kernels: tuple[int | tuple[int, ...], ...] | None = Field(
        None, description="of each level; an axis if lists; null: 3"
    )
    channels: tuple[int, ...] | None = Field(
        None, description="of each level; null: 32, doubled at each up to 320 (2D: 512)"
    )
    blocks: tuple[int, ...] = Field((1, 3, 4, 6, 6, 6), description="residual blocks a level")
    decoder_convs: int = Field(1, ge=1, description="convolutions a level of the decoder")
    init: Literal["kaiming", "default"] = Field("default", description="see nets.base.initialise")


def build(params: Params, *, in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return the network: ``(B, in_channels, *S)`` -> logits ``(B, out_channels, *S)``."""
    _check(params, spatial_dims)
    levels = len(params.strides) + 1
    network: Any = _architecture()(
        input_channels=in_channels,
        n_stages=levels,
        features_per_stage=level_channels(params.channels, levels, spatial_dims),
        conv_op=nn.Conv3d if spatial_dims == 3 else nn.Conv2d,
        kernel_sizes=level_kernels(params.kernels, levels),
        strides=level_strides(params.strides),
        n_blocks_per_stage=params.blocks,
        num_classes=out_channels,
        n_conv_per_stage_decoder=params.decoder_convs,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d if spatial_dims == 3 else nn.InstanceNorm2d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )
    network.apply(network.initialize)
    decoder = network.decoder
    decoder.seg_layers = decoder.seg_layers[-1:]  # the others are for deep supervision
    del decoder.encoder  # a second name of the encoder, which the forward pass does not use
    initialise(network, params.init)
    built: nn.Module = network
    return built


def stages(params: Params) -> dict[str, str]:
    """Return logical tap name -> place in the built network."""
    _check(params)
    ups = len(params.strides)
    places = {f"enc{level + 1}": f"encoder.stages.{level}" for level in range(ups)}
    places["bottleneck"] = f"encoder.stages.{ups}"
    places |= {f"dec{step + 1}": f"decoder.stages.{step}" for step in range(ups)}
    return places | {
        "pre_act": f"decoder.stages.{ups - 1}.convs.{params.decoder_convs - 1}.conv",
        "penult": f"decoder.seg_layers.0{INPUT}",
        "logits": "decoder.seg_layers.0",
    }


def divisor(params: Params) -> int | tuple[int, ...]:
    """Return the number that patch sides are multiples of, one a side where strides differ."""
    _check(params)
    return reduction(params.strides)


def _check(params: Params, spatial_dims: int | None = None) -> None:
    check_levels(
        params.strides,
        spatial_dims,
        params.kernels,
        channels=params.channels,
        blocks=params.blocks,
    )


def _architecture() -> Any:
    try:
        from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"network 'resenc_unet' needs {error.name}, which is not installed: "
            'pip install "kdpipe[nnunet]"'
        ) from error
    return ResidualEncoderUNet
