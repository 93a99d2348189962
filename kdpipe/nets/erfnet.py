"""ERFNet, a student of EMKD and Graph Flow: factorised residual blocks, 2.06 M parameters.

Source: Romera et al., "ERFNet: Efficient residual factorized ConvNet for real-time semantic
segmentation" (IEEE Transactions on Intelligent Transportation Systems 2018), in the form of the
authors' PyTorch release: non-bottleneck-1D blocks (a 3x1 and a 1x3 convolution, twice, the second
pair dilated 2, 4, 8, 16 in the coarsest stage), dropout of whole channels in the encoder.
Deviations: no classifier on the encoder, which the authors train it with beforehand; in 3D, three
axes in place of two.

With the defaults: ``enc1`` 16 channels at stride 2, ``enc2`` 64 at 4, ``bottleneck`` 128 at 8;
``dec1`` 64 at 4, ``dec2`` 16 at 2, ``dec3`` = ``logits``; ``penult`` is ``dec2``. ``corrected``,
also ``pre_act``, is the sum x + f(x) of the last block of ``dec2`` before its ReLU, and
``correction`` is f(x).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from kdpipe.discover import Parameters
from kdpipe.nets._efficient import ConvPool, Sum, axis_conv, batch_norm, dropout
from kdpipe.nets._layers import layer
from kdpipe.nets.base import INPUT, initialise

BLOCKS = 5
DILATIONS = (2, 4, 8, 16) * 2


class Params(Parameters):
    """Parameters of the network."""

    channels: tuple[int, int, int] = Field((16, 64, 128), description="finest first, increasing")
    dropout: tuple[float, float] = Field(
        (0.03, 0.3), description="rates in the encoder's second and its coarsest stage"
    )
    init: Literal["kaiming", "default"] = Field("default", description="see nets.base.initialise")


class FactorisedBlock(nn.Module):
    """Non-bottleneck-1D: ``relu(x + f(x))``, f four convolutions in 2D, six in 3D."""

    def __init__(self, channels: int, spatial_dims: int, dilation: int = 1, rate: float = 0.0):
        super().__init__()
        self.residual = nn.Sequential(
            _factorised(channels, spatial_dims, dilation=1),
            nn.ReLU(),
            _factorised(channels, spatial_dims, dilation),
            dropout(rate, spatial_dims),
        )
        self.sum = Sum()
        self.activation = nn.ReLU()

    def forward(self, feature: Tensor) -> Tensor:
        """Return a feature of the same shape."""
        output: Tensor = self.activation(self.sum(feature, self.residual(feature)))
        return output


class ERFNet(nn.Module):
    """The network; see the file's docstring for its stages."""

    def __init__(self, params: Params, in_channels: int, out_channels: int, spatial_dims: int):
        super().__init__()
        fine, middle, coarse = params.channels
        dims, (low, high) = spatial_dims, params.dropout
        self.encoder1 = ConvPool(in_channels, fine, dims, nn.ReLU(), bias=True)
        self.encoder2 = nn.Sequential(ConvPool(fine, middle, dims, nn.ReLU(), bias=True))
        self.encoder2.extend(FactorisedBlock(middle, dims, rate=low) for _ in range(BLOCKS))
        self.encoder3 = nn.Sequential(ConvPool(middle, coarse, dims, nn.ReLU(), bias=True))
        self.encoder3.extend(FactorisedBlock(coarse, dims, step, high) for step in DILATIONS)
        self.decoder1 = _decoder(coarse, middle, dims)
        self.decoder2 = _decoder(middle, fine, dims)
        self.head = layer("transposed", dims)(fine, out_channels, 2, stride=2)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        encoded = self.encoder3(self.encoder2(self.encoder1(image)))
        logits: Tensor = self.head(self.decoder2(self.decoder1(encoded)))
        return logits


def build(params: Params, *, in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return the network: ``(B, in_channels, *S)`` -> logits ``(B, out_channels, *S)``."""
    network = ERFNet(params, in_channels, out_channels, spatial_dims)
    initialise(network, params.init)
    return network


def stages(params: Params) -> dict[str, str]:
    """Return logical tap name -> place in the built network."""
    last = "decoder2.4"
    return {
        "enc1": "encoder1",
        "enc2": "encoder2",
        "bottleneck": "encoder3",
        "dec1": "decoder1",
        "dec2": "decoder2",
        "dec3": "head",
        "pre_act": f"{last}.sum",
        "corrected": f"{last}.sum",
        "correction": f"{last}.residual",
        "penult": f"head{INPUT}",
        "logits": "head",
    }


def divisor(params: Params) -> int:
    """Return the number that patch sides are multiples of."""
    return 8


def _factorised(channels: int, dims: int, dilation: int) -> nn.Sequential:
    """One convolution an axis with a ReLU between, then the norm."""
    layers: list[nn.Module] = []
    for axis in range(dims):
        layers += [axis_conv(channels, 3, axis, dims, dilation=dilation, bias=True), nn.ReLU()]
    return nn.Sequential(*layers[:-1], batch_norm(channels, dims))


def _decoder(inputs: int, outputs: int, dims: int) -> nn.Sequential:
    """Double the grid with a transposed convolution, then refine it with two blocks."""
    return nn.Sequential(
        layer("transposed", dims)(inputs, outputs, 3, stride=2, padding=1, output_padding=1),
        batch_norm(outputs, dims),
        nn.ReLU(),
        FactorisedBlock(outputs, dims),
        FactorisedBlock(outputs, dims),
    )
