"""ResNet-18 with a linear head, student of HLFD: no decoder, 11.2 M parameters.

Source: He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), in the form of HLFD's
code (ISBI 2024): torchvision's encoder from a random start, a 1-wide convolution at stride 32 and
linear interpolation with aligned corners up to the image. A grey image is repeated to three
channels, for which the stem was made; `rgb_stem` off makes a stem of its own. Deviation: HLFD's
d5..d2, which are its e4..e1 interpolated to the image, are not computed: they have no weights.

With the defaults: ``enc1..enc4`` 64, 64, 128, 256 channels at stride 2, 4, 8, 16 (stem before
pooling, layer1 to layer3); ``bottleneck`` = ``penult`` 512 at 32; ``pre_act`` is it before its
activation. There are no dec stages; for HLFD's d5..d2 give the method ``student_decoders: [enc4,
enc3, enc2, enc1]``, which it resizes itself.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from kdpipe.discover import Parameters
from kdpipe.nets._layers import Upsample, layer, replicated
from kdpipe.nets._resnet import ResNetEncoder
from kdpipe.nets.base import INPUT, initialise


class Params(Parameters):
    """Parameters of the network."""

    width: int = Field(64, ge=1, description="channels of the stem")
    output_stride: Literal[8, 16, 32] = Field(
        32, description="of the coarsest grid; below 32, later strides become dilations"
    )
    norm: Literal["batch", "instance"] = Field("batch", description="normalisation")
    rgb_stem: bool = Field(True, description="repeat a grey image to three channels")
    init: Literal["kaiming", "default"] = Field("kaiming", description="see nets.base.initialise")


class ResNet18(nn.Module):
    """``encoder``, ``head`` and ``up``."""

    def __init__(self, params: Params, in_channels: int, out_channels: int, spatial_dims: int):
        super().__init__()
        self.image_channels = 3 if in_channels == 1 and params.rgb_stem else in_channels
        self.encoder = ResNetEncoder(
            18,
            self.image_channels,
            spatial_dims,
            params.output_stride,
            params.norm,
            params.width,
        )
        self.head = layer("conv", spatial_dims)(self.encoder.channels[-1], out_channels, 1)
        self.up = Upsample(params.output_stride, align_corners=True)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(B, out_channels, *S)``."""
        features = self.encoder(replicated(image, self.image_channels))
        logits: Tensor = self.up(self.head(features[-1]))
        return logits


def build(params: Params, *, in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return the network: ``(B, in_channels, *S)`` -> logits ``(B, out_channels, *S)``."""
    network = ResNet18(params, in_channels, out_channels, spatial_dims)
    initialise(network, params.init)
    return network


def stages(params: Params) -> dict[str, str]:
    """Return logical tap name -> place in the built network."""
    return {
        "enc1": "encoder.stem",
        "enc2": "encoder.layer1",
        "enc3": "encoder.layer2",
        "enc4": "encoder.layer3",
        "bottleneck": "encoder.layer4",
        "pre_act": f"encoder.layer4.1.activation{INPUT}",
        "penult": f"head{INPUT}",
        "logits": "up",
    }


def divisor(params: Params) -> int:
    """Return the number that patch sides are multiples of."""
    return int(params.output_stride)
