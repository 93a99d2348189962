"""The optimiser of a training: who learns, how fast, and along which schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from kdpipe.methods.base import Distiller
from kdpipe.settings import Training


def learnable(module: nn.Module, method: Distiller) -> list[nn.Parameter]:
    """Return the parameters of the student, or of the method, without the method's critics."""
    critics = {id(critic) for critic in method.critic_parameters()}
    return [
        parameter
        for parameter in module.parameters()
        if parameter.requires_grad and id(parameter) not in critics
    ]


def build_optimizer(
    settings: Training, student: nn.Module, method: Distiller
) -> torch.optim.Optimizer:
    """Return the optimiser of student and adapters.

    Each group has a ``pace``, its factor on the learning rate. What a method paces itself has a
    group of its own, without weight decay.
    """
    paces = {id(parameter): pace for parameter, pace in method.paced_parameters()}
    parameters = [*learnable(student, method), *learnable(method, method)]
    shared = {"weight_decay": settings.weight_decay, "pace": 1.0}
    groups = [{"params": [p for p in parameters if id(p) not in paces], **shared}]
    groups += [
        {"params": [p], "weight_decay": 0.0, "pace": paces[id(p)]}
        for p in parameters
        if id(p) in paces
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
        )
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def clip_gradients(limit: float, student: nn.Module, method: Distiller) -> None:
    """Bound the L2 norm of the gradients of the student, and apart from it of the adapters.

    Together, an adapter with a large gradient would slow the student down.
    """
    for module in (student, method):
        nn.utils.clip_grad_norm_(learnable(module, method), limit)


def build_critic_optimizer(method: Distiller) -> torch.optim.Optimizer | None:
    """Return the optimiser of a method's adversary; None where it has none."""
    critics = list(method.critic_parameters())
    return torch.optim.AdamW(critics, lr=1e-4) if critics else None


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: Training, done: float) -> float:
    """Set and return the learning rate when the share `done` in [0, 1) of all steps is behind."""
    rate = learning_rate(settings, done)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["pace"]
    return rate


def learning_rate(settings: Training, done: float) -> float:
    """Return the learning rate when the share `done` in [0, 1) of all steps is behind."""
    first, last = settings.learning_rate, settings.final_learning_rate
    if settings.schedule == "poly":
        share: float = (1.0 - done) ** 0.9
        return last + (first - last) * share
    if settings.schedule == "cosine":
        return last + (first - last) * 0.5 * (1.0 + math.cos(done * math.pi))
    return first
