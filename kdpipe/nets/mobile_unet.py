"""Mobile U-Net, a student of ACF-BCKD: MobileNetV2 encoder, depth-wise up path, 13.9 M parameters.

Source: Jing et al., "Mobile-Unet: An efficient convolutional neural network for fabric defect
detection" (Textile Research Journal 2022) on Sandler et al., "MobileNetV2: Inverted residuals and
linear bottlenecks" (CVPR 2018), in the 3D form used as a student by ACF-BCKD (Expert Systems with
Applications 2025). As there: the stem is a depth-wise separable convolution, each block of stride 1
has a shortcut (projected where the width changes), each decoder level is one inverted residual with
a transposed convolution to which the skip is added, and the last transposed convolution is linear.
No deviation.

``unused_shortcuts`` are the projections that the published network builds in every block and
applies only where the width changes at stride 1; the others are here so that its parameters are as
many as published.

With the defaults: ``enc1..enc4`` 16, 24, 32, 96 channels at stride 2, 4, 8, 16; ``bottleneck`` 1280
at 32; ``dec1`` 96 at 16; ``dec2`` 32 at 8; ``dec3`` 24 at 4; ``dec4`` 16 at 2; ``dec5`` 16 at 1,
the raw last transposed convolution, also ``pre_act``, ACF-BCKD's place, and ``penult``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from kdpipe.discover import Parameters
from kdpipe.nets._layers import conv_norm, layer, norm_layer
from kdpipe.nets.base import INPUT, initialise

Rows = tuple[tuple[int, int, int], ...]

STEM, BOTTLENECK = 32, 1280
# a level: (channels, repeats, stride of the first); all levels but the first expand their channels
LEVELS: tuple[Rows, ...] = (
    ((16, 1, 1),),
    ((24, 2, 2),),
    ((32, 3, 2),),
    ((64, 4, 2), (96, 3, 1)),
    ((160, 3, 2), (320, 1, 1)),
)


class Params(Parameters):
    """Parameters of the network."""

    width: float = Field(
        1.0, gt=0, description="factor on all channels, which are rounded to multiples of 8"
    )
    expansion: int = Field(6, ge=1, description="of the channels within an inverted residual")
    init: Literal["kaiming", "default"] = Field("kaiming", description="see nets.base.initialise")


class InvertedResidual(nn.Module):
    """Expand the channels, filter each, project them; with a shortcut at stride 1.

    Args:
        inputs: channels that enter.
        outputs: channels that leave.
        spatial_dims: 2 or 3.
        stride: of the filter.
        expansion: channels within, over `inputs`.
        transposed: filter with a transposed convolution, which doubles the grid.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        spatial_dims: int,
        stride: int,
        expansion: int,
        transposed: bool = False,
    ):
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        hidden = inputs * expansion
        kind, kernel = ("transposed", 4) if transposed else ("conv", 3)
        self.residual = nn.Sequential(
            conv_norm(inputs, hidden, 1, spatial_dims, activation=nn.ReLU6),
            layer(kind, spatial_dims)(hidden, hidden, kernel, stride, 1, groups=hidden, bias=False),
            norm_layer("batch", hidden, spatial_dims),
            nn.ReLU6(),
            conv_norm(hidden, outputs, 1, spatial_dims, activation=None),
        )
        self.projects = stride == 1 and inputs != outputs
        self.shortcut: nn.Module | None = None
        if self.projects:
            self.shortcut = _project(inputs, outputs, spatial_dims)
        elif stride == 1:
            self.shortcut = nn.Identity()

    def forward(self, feature: Tensor) -> Tensor:
        """Return the residual, added to the shortcut if there is one."""
        output: Tensor = self.residual(feature)
        return output if self.shortcut is None else self.shortcut(feature) + output


class Up(nn.Module):
    """``block(x) + skip``, with an inverted residual that doubles the grid."""

    def __init__(self, inputs: int, outputs: int, spatial_dims: int, expansion: int):
        super().__init__()
        self.block = InvertedResidual(inputs, outputs, spatial_dims, 2, expansion, transposed=True)

    def forward(self, feature: Tensor, skip: Tensor) -> Tensor:
        """Double the grid of `feature` and add `skip`."""
        output: Tensor = self.block(feature) + skip
        return output


class MobileUNet(nn.Module):
    """See the description of this file."""

    def __init__(self, params: Params, in_channels: int, out_channels: int, spatial_dims: int):
        super().__init__()
        conv, transposed = layer("conv", spatial_dims), layer("transposed", spatial_dims)
        levels = [[(_scaled(c, params.width), n, s) for c, n, s in rows] for rows in LEVELS]
        widths = [rows[-1][0] for rows in levels]
        stem, deepest = _scaled(STEM, params.width), _scaled(BOTTLENECK, params.width)
        self.stem = nn.Sequential(
            conv(in_channels, in_channels, 3, stride=2, padding=1, groups=in_channels),
            norm_layer("batch", in_channels, spatial_dims),
            nn.ReLU6(),
            conv(in_channels, stem, 1),
        )
        self.encoder = nn.ModuleList()
        for index, rows in enumerate(levels):
            inputs = widths[index - 1] if index else stem
            expansion = params.expansion if index else 1
            self.encoder.append(_level(inputs, rows, spatial_dims, expansion))
        self.bottleneck = conv(widths[-1], deepest, 1)
        self.decoder = nn.ModuleList()
        for outputs in reversed(widths[:-1]):
            self.decoder.append(Up(deepest, outputs, spatial_dims, params.expansion))
            deepest = outputs
        self.up = transposed(deepest, deepest, 4, 2, 1, groups=deepest, bias=False)
        self.head = conv(deepest, out_channels, 1)
        self.unused_shortcuts = nn.ModuleList(
            _project(block.inputs, block.outputs, spatial_dims)
            for block in self.modules()
            if isinstance(block, InvertedResidual) and not block.projects
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        feature = self.stem(image)
        skips = []
        for level in self.encoder:
            feature = level(feature)
            skips.append(feature)
        feature = self.bottleneck(skips.pop())
        for up in self.decoder:
            feature = up(feature, skips.pop())
        logits: Tensor = self.head(self.up(feature))
        return logits


def build(params: Params, *, in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return the network: ``(B, in_channels, *S)`` -> logits ``(B, out_channels, *S)``."""
    network = MobileUNet(params, in_channels, out_channels, spatial_dims)
    initialise(network, params.init)
    return network


def stages(params: Params) -> dict[str, str]:
    """Return logical tap name -> place in the built network."""
    steps = range(len(LEVELS) - 1)
    return {
        **{f"enc{step + 1}": f"encoder.{step}" for step in steps},
        "bottleneck": "bottleneck",
        **{f"dec{step + 1}": f"decoder.{step}" for step in steps},
        f"dec{len(LEVELS)}": "up",
        "pre_act": "up",
        "penult": f"head{INPUT}",
        "logits": "head",
    }


def divisor(params: Params) -> int:
    """Return the number that patch sides are multiples of."""
    return int(2 ** len(LEVELS))


def _scaled(channels: int, width: float) -> int:
    return max(8, 8 * round(channels * width / 8))


def _project(inputs: int, outputs: int, spatial_dims: int) -> nn.Module:
    return layer("conv", spatial_dims)(inputs, outputs, 1, bias=False)


def _level(
    inputs: int, rows: list[tuple[int, int, int]], spatial_dims: int, expansion: int
) -> nn.Sequential:
    """Return the inverted residuals of a level, whose `rows` are as in `LEVELS`."""
    blocks = nn.Sequential()
    for outputs, repeats, stride in rows:
        for repeat in range(repeats):
            first = stride if repeat == 0 else 1
            blocks.append(InvertedResidual(inputs, outputs, spatial_dims, first, expansion))
            inputs = outputs
    return blocks
