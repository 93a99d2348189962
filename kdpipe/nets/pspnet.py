"""PSPNet, a teacher of EMKD: dilated ResNet with a pyramid of pooled grids, 47 M parameters.

Source: Zhao et al., "Pyramid scene parsing network" (CVPR 2017), as used by EMKD: averages over 1,
2, 3 and 6 regions an axis beside the encoder's output at stride 8. Deviations: plain ResNet with a
7-wide stem in place of three 3-wide convolutions; no auxiliary classifier; no norm on the single
region, see `kdpipe.nets._context`; random start weights. No library is used, since
segmentation_models_pytorch needs torchvision, whose build on the package index cannot be imported
beside a CPU build of torch.

With the defaults: ``enc1`` (stem) 64 channels at stride 2, ``enc2`` 256 at 4, ``enc3`` 512 at 8,
``enc4`` 1024 at 8, ``bottleneck`` 2048 at 8; ``dec1``, fused from the pyramid, 512 at 8;
``pre_act`` is its convolution and ``penult`` its output after dropout. ``logits`` are interpolated
from stride 8.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdpipe.discover import Parameters
from kdpipe.errors import ConfigError
from kdpipe.nets._context import PooledBranch
from kdpipe.nets._efficient import dropout
from kdpipe.nets._layers import Norm, Upsample, conv_norm, layer
from kdpipe.nets._resnet import Depth, ResNetEncoder
from kdpipe.nets.base import INPUT, initialise

DEPTHS: dict[str, Depth] = {"resnet18": 18, "resnet34": 34, "resnet50": 50}


class Params(Parameters):
    """Parameters of the network."""

    encoder: Literal["resnet18", "resnet34", "resnet50"] = Field(
        "resnet50", description="encoder, with random start weights"
    )
    output_stride: Literal[8, 16, 32] = Field(8, description="stride of the coarsest stage")
    bins: tuple[int, ...] = Field(
        (1, 2, 3, 6), min_length=1, description="regions an axis, of each pooled grid"
    )
    width: int = Field(64, ge=1, description="channels of the encoder's stem")
    dropout: float = Field(0.1, ge=0, lt=1, description="rate below the head, whole channels")
    norm: Literal["batch", "instance"] = Field("batch", description="normalisation")
    init: Literal["kaiming", "default"] = Field("default", description="see nets.base.initialise")


class PooledPyramid(nn.Module):
    """Concatenate a feature with its pooled branches, each of an equal share of its channels."""

    def __init__(self, inputs: int, bins: tuple[int, ...], spatial_dims: int, norm: Norm):
        super().__init__()
        share = inputs // len(bins)
        self.outputs = inputs + share * len(bins)
        self.branches = nn.ModuleList(
            PooledBranch(inputs, share, count, spatial_dims, norm) for count in bins
        )

    def forward(self, feature: Tensor) -> Tensor:
        """Return a feature of `outputs` channels on the same grid."""
        return torch.cat([feature, *(branch(feature) for branch in self.branches)], dim=1)


class PSPNet(nn.Module):
    """The network; see the file's docstring for its stages."""

    def __init__(self, params: Params, in_channels: int, out_channels: int, spatial_dims: int):
        super().__init__()
        dims, norm = spatial_dims, params.norm
        self.encoder = ResNetEncoder(
            DEPTHS[params.encoder], in_channels, dims, params.output_stride, norm, params.width
        )
        coarsest = self.encoder.channels[-1]
        self.pyramid = PooledPyramid(coarsest, params.bins, dims, norm)
        self.fuse = conv_norm(self.pyramid.outputs, coarsest // 4, 3, dims, norm)
        self.dropout = dropout(params.dropout, dims)
        self.head = layer("conv", dims)(coarsest // 4, out_channels, 1)
        self.upsample = Upsample(params.output_stride)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        fused = self.fuse(self.pyramid(self.encoder(image)[-1]))
        logits: Tensor = self.upsample(self.head(self.dropout(fused)))
        return logits


def build(params: Params, *, in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return the network: ``(B, in_channels, *S)`` -> logits ``(B, out_channels, *S)``."""
    if min(params.bins) < 1:
        raise ConfigError(
            f"pspnet: bins {list(params.bins)} are numbers of regions: each must be 1 or more"
        )
    network = PSPNet(params, in_channels, out_channels, spatial_dims)
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
        "dec1": "fuse",
        "pre_act": "fuse.conv",
        "penult": f"head{INPUT}",
        "logits": "upsample",
    }


def divisor(params: Params) -> int:
    """Return the number that patch sides are multiples of."""
    return int(params.output_stride)
