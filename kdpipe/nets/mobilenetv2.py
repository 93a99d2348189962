"""MobileNetV2 with a linear head at stride 8, student of EMKD and HLFD: 2.2 M parameters.

Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (CVPR 2018), in the
form of the students of EMKD (Qin et al., TMI 2021) and HLFD (ISBI 2024): the classification network
from a random start with two of its strides taken away (not replaced by dilation), a 1-wide
convolution, and linear interpolation with aligned corners up to the image. A grey image is repeated
to three channels, for which the stem was made; `rgb_stem` off makes a stem of its own. Deviation:
without the classifier that their code builds and never calls.

With the defaults: ``enc1..enc4`` 16, 24, 32, 96 channels at stride 2, 2, 4, 4; ``bottleneck`` 320
at 8 (outputs of linear bottlenecks: not activated); ``penult``, the input of the head, 1280 at 8;
``pre_act`` is its convolution before norm and activation. There are no dec stages; as pixel-level
taps of HLFD give the method ``student_decoders: [enc4, enc3, enc2, enc1]``.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from kdpipe.discover import Parameters
from kdpipe.nets._layers import Norm, Upsample, conv_norm, layer, replicated
from kdpipe.nets.base import INPUT, initialise

# expansion, channels and blocks of the paper's table 2, split where a stage ends
_STAGES = (
    ((1, 16, 1),),
    ((6, 24, 2),),
    ((6, 32, 3),),
    ((6, 64, 4), (6, 96, 3)),
    ((6, 160, 3), (6, 320, 1)),
)


class Params(Parameters):
    """Parameters of the network."""

    width: float = Field(1.0, gt=0, description="multiplies all channels but the last, if below 1")
    strides: tuple[Literal[1, 2], ...] = Field(
        (1, 1, 2, 1, 1, 2, 1),
        min_length=7,
        max_length=7,
        description="of the seven groups after the stem, which has 2; 1 2 2 2 1 2 1: the paper's",
    )
    norm: Literal["batch", "instance"] = Field("batch", description="normalisation")
    rgb_stem: bool = Field(True, description="repeat a grey image to three channels")
    init: Literal["kaiming", "default"] = Field("kaiming", description="see nets.base.initialise")


class InvertedResidual(nn.Module):
    """1-wide expansion, 3-wide convolution channel by channel, linear 1-wide projection."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        expansion: int,
        stride: int,
        spatial_dims: int,
        norm: Norm = "batch",
    ):
        super().__init__()
        inner = inputs * expansion
        self.residual = nn.Sequential()
        if expansion > 1:
            expand = conv_norm(inputs, inner, 1, spatial_dims, norm, activation=nn.ReLU6)
            self.residual.add_module("expand", expand)
        depthwise = conv_norm(
            inner, inner, 3, spatial_dims, norm, stride=stride, groups=inner, activation=nn.ReLU6
        )
        self.residual.add_module("depthwise", depthwise)
        project = conv_norm(inner, outputs, 1, spatial_dims, norm, activation=None)
        self.residual.add_module("project", project)
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, feature: Tensor) -> Tensor:
        """Return the residual branch, added to its input where the shapes are the same."""
        output: Tensor = self.residual(feature)
        return feature + output if self.has_shortcut else output


class MobileNetV2(nn.Module):
    """``stem``, ``stages`` of inverted residuals, ``last``, ``head`` and ``up``."""

    def __init__(self, params: Params, in_channels: int, out_channels: int, spatial_dims: int):
        super().__init__()
        norm, dims = params.norm, spatial_dims
        self.image_channels = 3 if in_channels == 1 and params.rgb_stem else in_channels
        inputs = _scaled(32, params.width)
        self.stem = conv_norm(
            self.image_channels, inputs, 3, dims, norm, stride=2, activation=nn.ReLU6
        )
        strides = iter(params.strides)
        self.stages = nn.ModuleList()
        for groups in _STAGES:
            stage = nn.Sequential()
            for expansion, channels, blocks in groups:
                outputs = _scaled(channels, params.width)
                for stride in (next(strides), *(1,) * (blocks - 1)):
                    stage.append(InvertedResidual(inputs, outputs, expansion, stride, dims, norm))
                    inputs = outputs
            self.stages.append(stage)
        features = _scaled(1280, max(1.0, params.width))
        self.last = conv_norm(inputs, features, 1, dims, norm, activation=nn.ReLU6)
        self.head = layer("conv", dims)(features, out_channels, 1)
        self.up = Upsample(divisor(params), align_corners=True)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(B, out_channels, *S)``."""
        feature = self.stem(replicated(image, self.image_channels))
        for stage in self.stages:
            feature = stage(feature)
        logits: Tensor = self.up(self.head(self.last(feature)))
        return logits


def build(params: Params, *, in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return the network: ``(B, in_channels, *S)`` -> logits ``(B, out_channels, *S)``."""
    network = MobileNetV2(params, in_channels, out_channels, spatial_dims)
    initialise(network, params.init)
    return network


def stages(params: Params) -> dict[str, str]:
    """Return logical tap name -> place in the built network."""
    places = {f"enc{stage + 1}": f"stages.{stage}" for stage in range(4)}
    return places | {
        "bottleneck": "stages.4",
        "pre_act": "last.conv",
        "penult": f"head{INPUT}",
        "logits": "up",
    }


def divisor(params: Params) -> int:
    """Return the number that patch sides are multiples of."""
    return 2 * math.prod(params.strides)


def _scaled(channels: int, width: float) -> int:
    """Return channels times width, to the nearest multiple of 8 that is not below 90 % of it."""
    nearest = max(8, int(channels * width + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels * width else nearest + 8
