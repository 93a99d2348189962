"""Swin UNETR, a shifted-window transformer encoder with a convolutional decoder: 62.2 M parameters.

Source: Hatamizadeh et al., "Swin UNETR: Swin transformers for semantic segmentation of brain tumors
in MRI images" (BrainLes 2021), in the form of MONAI's ``SwinUNETR``: patches of 2 voxels a side,
four Swin stages of windows of 7, residual blocks of two convolutions on each of their outputs and
after each transposed convolution. No deviation; ``v2: true`` is MONAI's Swin UNETR V2 (He et al.,
MICCAI 2023), a residual block before each Swin stage.

With the defaults: ``enc1`` 48 channels at stride 1, ``enc2..enc4`` 48, 96, 192 at 2, 4, 8 (residual
blocks on the image and on the Swin stages); ``enc5`` 384 at 16, the third Swin stage, of which the
decoder reads the layer norm; ``bottleneck`` 768 at 32; ``dec1..dec5`` 384, 192, 96, 48, 48 at 16,
8, 4, 2, 1. ``dec5`` is ``penult``, the head's input, and ``corrected``: x + f(x) with x the
shortcut's projection, after its leaky ReLU; ``correction`` is f(x), normalised; ``pre_act`` is the
last convolution, before that norm.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from kdpipe.discover import Parameters
from kdpipe.errors import ConfigError
from kdpipe.nets.base import COPY, INPUT, initialise


class Params(Parameters):
    """Parameters of the network."""

    feature_size: int = Field(
        48, ge=12, multiple_of=12, description="channels of the finest level; 12, 24, 36 are light"
    )
    depths: tuple[int, ...] = Field(
        (2, 2, 2, 2), min_length=4, max_length=4, description="transformer blocks a Swin stage"
    )
    heads: tuple[int, ...] = Field(
        (3, 6, 12, 24), min_length=4, max_length=4, description="attention heads a Swin stage"
    )
    window: int = Field(7, ge=2, description="side of an attention window, in tokens")
    drop_path: float = Field(0.0, ge=0, lt=1, description="of the deepest transformer block")
    v2: bool = Field(False, description="a residual block before each Swin stage")
    init: Literal["kaiming", "default"] = Field("default", description="see nets.base.initialise")


def build(params: Params, *, in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return the network: ``(B, in_channels, *S)`` -> logits ``(B, out_channels, *S)``."""
    from monai.networks.nets.swin_unetr import SwinUNETR  # costs seconds

    _check(params)
    network = SwinUNETR(
        in_channels=in_channels,
        out_channels=out_channels,
        depths=params.depths,
        num_heads=params.heads,
        window_size=params.window,
        feature_size=params.feature_size,
        dropout_path_rate=params.drop_path,
        spatial_dims=spatial_dims,
        use_v2=params.v2,
    )
    initialise(network, params.init)
    return network


def stages(params: Params) -> dict[str, str]:
    """Return logical tap name -> place in the built network."""
    _check(params)
    places = {f"enc{level}": f"encoder{level}" for level in range(1, 5)}
    places |= {"enc5": "swinViT.layers3.0", "bottleneck": "encoder10"}
    places |= {f"dec{step}": f"decoder{6 - step}" for step in range(1, 6)}
    last = "decoder1.conv_block"
    return places | {
        "pre_act": f"{last}.conv2",
        "corrected": last,
        # MONAI's block adds its shortcut in place, onto the tensor that norm2 gave
        "correction": f"{last}.norm2{COPY}",
        "penult": f"out{INPUT}",
        "logits": "out",
    }


def divisor(params: Params) -> int:
    """Return the number that patch sides are multiples of: tokens of 2, halved four times."""
    _check(params)
    return 32


def _check(params: Params) -> None:
    sizes = [params.feature_size * 2**stage for stage in range(4)]
    fitting = all(
        heads >= 1 and size % heads == 0 for size, heads in zip(sizes, params.heads, strict=True)
    )
    if not fitting or min(params.depths) < 1:
        raise ConfigError(
            f"swin_unetr: depths {list(params.depths)} must be 1 or more, and heads "
            f"{list(params.heads)} must divide the stages' channels {sizes}"
        )
