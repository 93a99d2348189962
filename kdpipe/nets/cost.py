"""What a network costs: stored parameters, and multiply-accumulates of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdpipe.nets.base import dry_forward


def parameters(network: nn.Module) -> int:
    """Return the number of parameters, shared ones once, buffers not."""
    return sum(parameter.numel() for parameter in network.parameters())


def macs(network: nn.Module, input_shape: Sequence[int]) -> int:
    """Return the multiply-accumulates of one forward pass on ``input_shape = (B, C, *S)``.

    Convolutions, transposed convolutions and matrix products count (torch's FLOPs, two to a
    multiply-accumulate); normalisation, activation, interpolation and bias do not. Only shapes are
    computed, see `kdpipe.nets.base.dry_forward`.
    """
    with FlopCounterMode(display=False) as counter:
        dry_forward(network, input_shape)
    return int(counter.get_total_flops()) // 2
