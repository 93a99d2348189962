"""DeepLabV3+, a teacher of EMKD: dilated ResNet, atrous pyramid, one skip; 40 M parameters.

Source: Chen et al., "Encoder-decoder with atrous separable convolution for semantic image
segmentation" (ECCV 2018). Deviations: ResNet encoder and plain convolutions in the pyramid and the
decoder (EMKD: Xception, plain convolutions too); no norm after the image-wide pooling, see
`kdpipe.nets._context`; random start weights. No library is used, since
segmentation_models_pytorch needs torchvision, whose build on the package index cannot be imported
beside a CPU build of torch.

With the defaults: ``enc1`` (stem) 64 channels at stride 2, ``enc2`` 256 at 4, ``enc3`` 512 at 8,
``enc4`` 1024 at 16, ``bottleneck`` 2048 at 16; ``dec1``, the output of the pyramid, 256 at 16;
``dec2``, joined with the 48 projected channels of ``enc2``, 256 at 4, which is also ``penult``;
``pre_act`` is the last convolution of ``dec2``. ``logits`` are interpolated from stride 4.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdpipe.discover import Parameters
from kdpipe.errors import ConfigError
from kdpipe.nets._context import PooledBranch
from kdpipe.nets._layers import Upsample, conv_norm, layer, resize
from kdpipe.nets._resnet import Depth, ResNetEncoder
from kdpipe.nets.base import INPUT, initialise

DEPTHS: dict[str, Depth] = {"resnet18": 18, "resnet34": 34, "resnet50": 50}
SKIP_CHANNELS = 48
SKIP_STRIDE = 4


class Params(Parameters):
    """Parameters of the network."""

    encoder: Literal["resnet18", "resnet34", "resnet50"] = Field(
        "resnet50", description="encoder, with random start weights"
    )
    output_stride: Literal[8, 16, 32] = Field(16, description="stride of the coarsest stage")
    rates: tuple[int, ...] = Field(
        (6, 12, 18), min_length=1, description="dilations of the pyramid; the paper doubles at 8"
    )
    channels: int = Field(256, ge=1, description="of the pyramid and the decoder")
    width: int = Field(64, ge=1, description="channels of the encoder's stem")
    dropout: float = Field(0.1, ge=0, lt=1, description="rate after the pyramid")
    norm: Literal["batch", "instance"] = Field("batch", description="normalisation")
    init: Literal["kaiming", "default"] = Field("default", description="see nets.base.initialise")


class AtrousPyramid(nn.Module):
    """ASPP: 1-wide, dilated 3-wide and pooled branches, concatenated and projected."""

    def __init__(self, params: Params, inputs: int, spatial_dims: int):
        super().__init__()
        channels, norm = params.channels, params.norm
        self.branches = nn.ModuleList([conv_norm(inputs, channels, 1, spatial_dims, norm)])
        self.branches.extend(
            conv_norm(inputs, channels, 3, spatial_dims, norm, dilation=rate)
            for rate in params.rates
        )
        self.branches.append(PooledBranch(inputs, channels, 1, spatial_dims, norm))
        joined = len(self.branches) * channels
        self.project = conv_norm(joined, channels, 1, spatial_dims, norm)
        self.dropout = nn.Dropout(params.dropout)

    def forward(self, feature: Tensor) -> Tensor:
        """Return a feature of `channels` on the same grid."""
        joined = torch.cat([branch(feature) for branch in self.branches], dim=1)
        output: Tensor = self.dropout(self.project(joined))
        return output


class DeepLabV3Plus(nn.Module):
    """The network; see the file's docstring for its stages."""

    def __init__(self, params: Params, in_channels: int, out_channels: int, spatial_dims: int):
        super().__init__()
        channels, dims, norm = params.channels, spatial_dims, params.norm
        self.encoder = ResNetEncoder(
            DEPTHS[params.encoder], in_channels, dims, params.output_stride, norm, params.width
        )
        self.pyramid = AtrousPyramid(params, self.encoder.channels[-1], dims)
        self.skip = conv_norm(self.encoder.channels[1], SKIP_CHANNELS, 1, dims, norm)
        self.refine = nn.Sequential(
            conv_norm(channels + SKIP_CHANNELS, channels, 3, dims, norm),
            conv_norm(channels, channels, 3, dims, norm),
        )
        self.head = layer("conv", dims)(channels, out_channels, 1)
        self.upsample = Upsample(SKIP_STRIDE)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        _, fine, *_, coarse = self.encoder(image)
        skip = self.skip(fine)
        context = resize(self.pyramid(coarse), skip.shape[2:])
        refined = self.refine(torch.cat([context, skip], dim=1))
        logits: Tensor = self.upsample(self.head(refined))
        return logits


def build(params: Params, *, in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return the network: ``(B, in_channels, *S)`` -> logits ``(B, out_channels, *S)``."""
    if min(params.rates) < 1:
        raise ConfigError(
            f"deeplabv3plus: rates {list(params.rates)} are dilations: each must be 1 or more"
        )
    network = DeepLabV3Plus(params, in_channels, out_channels, spatial_dims)
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
        "dec1": "pyramid",
        "dec2": "refine",
        "pre_act": "refine.1.conv",
        "penult": f"head{INPUT}",
        "logits": "upsample",
    }


def divisor(params: Params) -> int:
    """Return the number that patch sides are multiples of."""
    return int(params.output_stride)
