"""Batch normalisation over the crops of all processes that train together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdpipe.engine.parallel import summed, world


def share_batch_norm(network: nn.Module) -> None:
    """Let batch normalisation see the crops of all processes, as it would in one.

    Layers change their class in place: hooks, parameters and names of weights stay.
    """
    if world() == 1:
        return
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            on_gpu = next(network.parameters()).device.type == "cuda"
            kind = nn.SyncBatchNorm if on_gpu else _SharedBatchNorm  # torch has none for the CPU
            vars(module)["process_group"] = None
            object.__setattr__(module, "__class__", kind)


class _SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the crops of all processes, on the CPU."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # it was checked as what it has been

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        dims, shape = [0, *range(2, input.ndim)], [1, -1, *[1] * (input.ndim - 2)]
        mean = _sum(input.mean(dims)) / world()
        centred = input - mean.view(shape)
        variance = _sum(centred.square().mean(dims)) / world()
        self._remember(mean, variance, world() * input.numel() // input.shape[1])
        normal: Tensor = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        pace = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, pace)
        self.running_var.lerp_(variance * (count / max(1, count - 1)), pace)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        return summed([tensor])[0]

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return summed([gradients[0]])[0]


def _sum(tensor: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return total
