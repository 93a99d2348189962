"""UNETR, a vision transformer as encoder with a convolutional decoder: 92.8 M parameters.

Source: Hatamizadeh et al., "UNETR: transformers for 3D medical image segmentation" (WACV 2022), in
the form of MONAI's ``UNETR``: tokens of 16 voxels a side, 12 transformer blocks, of which the 3rd,
6th, 9th (counted from 0) and last are brought up to finer grids. Learnt positions bind the network
to one patch, the parameter ``patch``. Deviation: the norms of a cross attention that MONAI's blocks
carry without using them are left out.

With the defaults: ``enc1`` 16 channels at stride 1, a residual block on the image; ``enc2..enc4``
32, 64, 128 at 2, 4, 8, tokens brought up; ``bottleneck`` 768 at 16, the last tokens as a map;
``dec1..dec4`` 128, 64, 32, 16 at 8, 4, 2, 1. ``dec4`` is ``penult``, the head's input, and
``corrected``: x + f(x) with x the shortcut's projection, after its leaky ReLU; ``correction`` is
f(x), normalised; ``pre_act`` is the last convolution, before that norm.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from kdpipe.discover import Parameters
from kdpipe.errors import ConfigError
from kdpipe.nets.base import COPY, INPUT, initialise

TOKEN = 16  # voxels a side, fixed in MONAI's module


class Params(Parameters):
    """Parameters of the network."""

    patch: tuple[int, ...] = Field(
        (96, 96, 96), min_length=2, max_length=3, description="the preset's patch, which it is for"
    )
    feature_size: int = Field(16, ge=1, description="channels of the finest level")
    hidden: int = Field(768, ge=1, description="channels of a token")
    mlp: int = Field(3072, ge=1, description="hidden channels of a block's perceptron")
    heads: int = Field(12, ge=1, description="attention heads; a divisor of hidden")
    dropout: float = Field(0.0, ge=0, lt=1, description="in the transformer")
    init: Literal["kaiming", "default"] = Field("default", description="see nets.base.initialise")


def build(params: Params, *, in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return the network: ``(B, in_channels, *S)`` -> logits ``(B, out_channels, *S)``."""
    from monai.networks.nets.unetr import UNETR  # costs seconds

    _check(params)
    if len(params.patch) != spatial_dims:
        raise ConfigError(
            f"unetr: patch {list(params.patch)} has {len(params.patch)} sides, the images have "
            f"{spatial_dims}: set it to the preset's patch"
        )
    network = UNETR(
        in_channels=in_channels,
        out_channels=out_channels,
        img_size=params.patch,
        feature_size=params.feature_size,
        hidden_size=params.hidden,
        mlp_dim=params.mlp,
        num_heads=params.heads,
        dropout_rate=params.dropout,
        spatial_dims=spatial_dims,
    )
    for block in network.vit.blocks:
        block.norm_cross_attn = nn.Identity()
        block.cross_attn = nn.Identity()  # older MONAI builds it, too
    initialise(network, params.init)
    return network


def stages(params: Params) -> dict[str, str]:
    """Return logical tap name -> place in the built network."""
    _check(params)
    places = {f"enc{level}": f"encoder{level}" for level in range(1, 5)}
    places["bottleneck"] = f"decoder5{INPUT}"
    places |= {f"dec{step}": f"decoder{6 - step}" for step in range(1, 5)}
    last = "decoder2.conv_block"
    return places | {
        "pre_act": f"{last}.conv2",
        "corrected": last,
        # MONAI's block adds its shortcut in place, onto the tensor that norm2 gave
        "correction": f"{last}.norm2{COPY}",
        "penult": f"out{INPUT}",
        "logits": "out",
    }


def divisor(params: Params) -> int:
    """Return the number that patch sides are multiples of: the side of a token."""
    _check(params)
    return TOKEN


def fixed_patch(params: Params) -> tuple[int, ...]:
    """Return the only patch that fits: there is one learnt position a token."""
    _check(params)
    return params.patch


def _check(params: Params) -> None:
    if any(side < TOKEN or side % TOKEN for side in params.patch):
        raise ConfigError(
            f"unetr: the sides of patch {list(params.patch)} must be multiples of {TOKEN}"
        )
    if params.hidden % params.heads:
        raise ConfigError(
            f"unetr: {params.heads} heads do not divide hidden {params.hidden}; take a divisor"
        )
