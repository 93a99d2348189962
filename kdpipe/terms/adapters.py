"""Layers that methods build for training only, in 2D and 3D. None is part of the student."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def convolution(
    spatial_dims: int, inputs: int, outputs: int, kernel: int = 3, **settings: Any
) -> nn.Conv2d | nn.Conv3d:
    """Return a convolution that keeps the grid (odd `kernel`, stride 1)."""
    layer = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
    return layer(inputs, outputs, kernel, padding=kernel // 2, **settings)


def pointwise(
    spatial_dims: int, inputs: int, outputs: int, bias: bool = False
) -> nn.Conv2d | nn.Conv3d:
    """Return a 1×1(×1) convolution, the adapter between two numbers of channels."""
    return convolution(spatial_dims, inputs, outputs, kernel=1, bias=bias)


def matching(spatial_dims: int, inputs: int, outputs: int, bias: bool = False) -> nn.Module:
    """Return `pointwise`, or the identity where the numbers of channels agree."""
    if inputs == outputs:
        return nn.Identity()
    return pointwise(spatial_dims, inputs, outputs, bias)


def batch_norm(spatial_dims: int, channels: int) -> nn.Module:
    """Return batch normalisation."""
    return (nn.BatchNorm3d if spatial_dims == 3 else nn.BatchNorm2d)(channels)


def instance_norm(spatial_dims: int, channels: int) -> nn.Module:
    """Return instance normalisation with learnable scale and offset."""
    layer = nn.InstanceNorm3d if spatial_dims == 3 else nn.InstanceNorm2d
    return layer(channels, affine=True)


def block(spatial_dims: int, inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    """Return a convolution, instance normalisation and ReLU; the grid keeps its size."""
    return nn.Sequential(
        convolution(spatial_dims, inputs, outputs, kernel, bias=False),
        instance_norm(spatial_dims, outputs),
        nn.ReLU(inplace=True),
    )


class _ReversedGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: Tensor, strength: float) -> Tensor:
        context.strength = strength
        return tensor.view_as(tensor)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -context.strength * gradients[0], None


def reverse_gradient(tensor: Tensor, strength: float) -> Tensor:
    """Return `tensor`; its gradient is multiplied by ``-strength`` on the way back.

    Source: Ganin, Lempitsky: Unsupervised domain adaptation by backpropagation, ICML 2015.
    """
    result: Tensor = _ReversedGradient.apply(tensor, strength)  # type: ignore[no-untyped-call]
    return result


class AdversarialTemperature(nn.Module):
    """A temperature that is learnt *against* the student, by gradient reversal.

    Source: Li et al., Curriculum Temperature for Knowledge Distillation (CTKD), AAAI 2023, its
    global variant: ``T = start + span * sigmoid(theta)``, where the strength of the reversal grows
    as half a cosine from 0 to 1.

    Args:
        start: lowest temperature, > 0.
        span: T lies in (start, start + span).
        classes: one theta a class instead of one for all.
    """

    def __init__(self, start: float, span: float, classes: int = 1):
        super().__init__()
        self.start, self.span = start, span
        self.theta = nn.Parameter(torch.ones(classes))

    def forward(self, strength: float) -> Tensor:
        """Return T ``(classes,)``; theta's gradient is reversed times `strength` (-1: as it is)."""
        with torch.no_grad():
            self.theta.clamp_(-4.0, 4.0)  # beyond, the sigmoid has no gradient to come back by
        return self.start + self.span * reverse_gradient(self.theta, strength).sigmoid()
