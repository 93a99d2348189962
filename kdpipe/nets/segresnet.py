"""SegResNet, teacher T2 of ACF-BCKD: residual encoder-decoder with added skips, 4.7 M parameters.

Source: Myronenko, "3D MRI brain tumor segmentation using autoencoder regularization" (BrainLes
2018) without the autoencoder branch, in the form of MONAI's ``SegResNet`` with 16 filters, as used
as a teacher by ACF-BCKD (Expert Systems with Applications 2025): pre-activation residual blocks,
group norm in 8 groups, ReLU, interpolation up without weights. No deviation.

With the defaults: ``enc1..enc3`` 16, 32, 64 channels at stride 1, 2, 4; ``bottleneck`` 128 at 8;
``dec1`` 64 at 4; ``dec2`` 32 at 2; ``dec3`` 16 at 1. The output of the last decoder stage, not yet
normalised or activated, is ``dec3``, ``pre_act``, ``penult`` (input of the head) and ``corrected``
(of the stage's first block, if it has several). ``correction`` is the raw second convolution of
that block.
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

    init_filters: int = Field(
        16, ge=8, multiple_of=8, description="channels of the finest level, doubled at each next"
    )
    blocks_down: tuple[int, ...] = Field(
        (1, 2, 2, 4), min_length=2, description="residual blocks a level, finest first"
    )
    blocks_up: tuple[int, ...] = Field((1, 1, 1), description="coarsest first, one level fewer")
    init: Literal["kaiming", "default"] = Field("kaiming", description="see nets.base.initialise")


def build(params: Params, *, in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return the network: ``(B, in_channels, *S)`` -> logits ``(B, out_channels, *S)``."""
    from monai.networks.nets.segresnet import SegResNet  # costs seconds

    _check_levels(params)
    network = SegResNet(
        spatial_dims=spatial_dims,
        init_filters=params.init_filters,
        in_channels=in_channels,
        out_channels=out_channels,
        blocks_down=params.blocks_down,
        blocks_up=params.blocks_up,
    )
    initialise(network, params.init)
    return network


def stages(params: Params) -> dict[str, str]:
    """Return logical tap name -> place in the built network."""
    _check_levels(params)
    bottom = len(params.blocks_up)
    places = {f"enc{level + 1}": f"down_layers.{level}" for level in range(bottom)}
    places["bottleneck"] = f"down_layers.{bottom}"
    places |= {f"dec{step + 1}": f"up_layers.{step}" for step in range(bottom)}
    last = f"up_layers.{bottom - 1}"
    return places | {
        "pre_act": last,
        "corrected": f"{last}.0",
        # MONAI's block adds its shortcut in place, onto the tensor that conv2 gave
        "correction": f"{last}.0.conv2{COPY}",
        "penult": f"conv_final{INPUT}",
        "logits": "conv_final",
    }


def divisor(params: Params) -> int:
    """Return the number that patch sides are multiples of."""
    _check_levels(params)
    return int(2 ** len(params.blocks_up))


def _check_levels(params: Params) -> None:
    down, up = params.blocks_down, params.blocks_up
    if len(up) != len(down) - 1 or min(*down, *up) < 1:
        raise ConfigError(
            f"segresnet: blocks_up {list(up)} needs one entry fewer than blocks_down {list(down)}, "
            "and each level one block or more"
        )
