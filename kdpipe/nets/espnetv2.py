"""ESPNetv2, a student of ACF-BCKD: dilated depth-wise pyramids, 0.28 M parameters.

Source: Mehta et al., "ESPNetv2: A light-weight, power efficient, and general purpose convolutional
neural network" (CVPR 2019) at scale 1.0, with the segmentation decoder of its authors' EdgeNets
code, in the 3D form used as a student by ACF-BCKD (Expert Systems with Applications 2025). The
blocks are in ``_espnet.py``. There is no full-resolution decoder stage: the head works at stride 2
and its output is interpolated. Deviation: at least one channel a scale of the pyramid pooling,
which is halved from the classes, so that one output channel is possible.

``unused_activations`` are the three PReLUs that the published network builds in its down-sampling
blocks and never applies; they are here so that its parameters are as many as published.

With the defaults: ``enc1..enc3`` 32, 64, 128 channels at stride 2, 4, 8; ``bottleneck`` 256 at 16;
``dec1`` 64 at 8; ``dec2`` 48 at 4; ``dec3`` 32 at 2, each after the skip was added, normalised and
activated. ``dec3`` is also ``penult``, the input of the head, and ``pre_act``, ACF-BCKD's place.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from kdpipe.discover import Parameters
from kdpipe.errors import ConfigError
from kdpipe.nets._espnet import Down, Merge, PyramidPool, ResidualPyramid, conv_norm_prelu
from kdpipe.nets._layers import Upsample
from kdpipe.nets.base import initialise

# widest dilated kernel of the three down-sampling blocks, then of the blocks after the last two
REACH_DOWN = (13, 11, 9)
REACH = (9, 7)


class Params(Parameters):
    """Parameters of the network."""

    channels: tuple[int, int, int, int] = Field(
        (32, 64, 128, 256), description="encoder, finest first: ascending multiples of 16"
    )
    blocks: tuple[int, int] = Field((3, 7), description="residual blocks of the last two levels")
    decoder_channels: tuple[int, int, int] = Field((64, 48, 32), description="coarsest first")
    pyramid_channels: int = Field(
        16, ge=1, description="a scale of the pyramid pooling; at most half the classes"
    )
    init: Literal["kaiming", "default"] = Field("kaiming", description="see nets.base.initialise")


class ESPNetv2(nn.Module):
    """See the description of this file."""

    def __init__(self, params: Params, in_channels: int, out_channels: int, spatial_dims: int):
        super().__init__()
        c1, c2, c3, c4 = params.channels
        d1, d2, d3 = params.decoder_channels
        width = max(1, min(out_channels // 2, params.pyramid_channels))
        dims = spatial_dims
        self.stem = conv_norm_prelu(in_channels, c1, 3, dims, stride=2)
        self.down2 = Down(c1, c2, in_channels, dims, REACH_DOWN[0], stride=4)
        self.down3 = Down(c2, c3, in_channels, dims, REACH_DOWN[1], stride=8)
        self.level3 = _level(c3, dims, REACH[0], params.blocks[0])
        self.down4 = Down(c3, c4, in_channels, dims, REACH_DOWN[2], stride=16)
        self.level4 = _level(c4, dims, REACH[1], params.blocks[1])
        self.pyramid1 = PyramidPool(c4, width, d1, dims, head=False)
        self.merge1 = Merge(d1, c3, dims)
        self.pyramid2 = PyramidPool(d1, width, d2, dims, head=False)
        self.merge2 = Merge(d2, c2, dims)
        self.pyramid3 = PyramidPool(d2, width, d3, dims, head=False)
        self.merge3 = Merge(d3, c1, dims)
        self.head = PyramidPool(d3, width, out_channels, dims, head=True)
        self.up = Upsample(2, align_corners=True)
        self.unused_activations = nn.ModuleList(
            nn.PReLU(added) for added in (c2 - c1, c3 - c2, c4 - c3)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        level1 = self.stem(image)
        level2 = self.down2(level1, image)
        level3 = self.level3(self.down3(level2, image))
        level4 = self.level4(self.down4(level3, image))
        decoded = self.merge1(self.pyramid1(level4), level3)
        decoded = self.merge2(self.pyramid2(decoded), level2)
        decoded = self.merge3(self.pyramid3(decoded), level1)
        logits: Tensor = self.up(self.head(decoded))
        return logits


def build(params: Params, *, in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return the network: ``(B, in_channels, *S)`` -> logits ``(B, out_channels, *S)``."""
    _check(params)
    network = ESPNetv2(params, in_channels, out_channels, spatial_dims)
    initialise(network, params.init)
    return network


def stages(params: Params) -> dict[str, str]:
    """Return logical tap name -> place in the built network."""
    _check(params)
    return {
        "enc1": "stem",
        "enc2": "down2",
        "enc3": "level3",
        "bottleneck": "level4",
        "dec1": "merge1",
        "dec2": "merge2",
        "dec3": "merge3",
        "pre_act": "merge3",
        "penult": "merge3",
        "logits": "up",
    }


def divisor(params: Params) -> int:
    """Return the number that patch sides are multiples of."""
    _check(params)
    return 16


def _level(channels: int, spatial_dims: int, reach: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualPyramid(channels, spatial_dims, reach) for _ in range(blocks)))


def _check(params: Params) -> None:
    channels = params.channels
    ascending = all(a < b for a, b in zip(channels, channels[1:], strict=False))
    if not ascending or channels[0] < 16 or any(width % 16 for width in channels):
        raise ConfigError(
            f"espnetv2: channels {list(channels)} must be ascending multiples of 16, since each "
            "level adds the channels of four grouped branches; take for example [16, 32, 64, 128]"
        )
    if min(*params.blocks, *params.decoder_channels) < 1:
        raise ConfigError(
            f"espnetv2: blocks {list(params.blocks)} and decoder_channels "
            f"{list(params.decoder_channels)} must all be 1 or more"
        )
