"""What a distillation method is: a module that turns two networks' outputs into loss terms.

A method is one file: pure loss functions of tensors and a ``class Method(Distiller)``. It sees
logits and features by logical tap name (``enc1``, ``dec2``, ``penult``, ...), never a network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn


@dataclass(frozen=True)
class TapSpec:
    """Shape facts of a recorded feature: channels, and input voxels per feature voxel by axis."""

    channels: int
    stride: tuple[float, ...]


@dataclass
class Outputs:
    """What one network gave for a batch.

    Attributes:
        logits: ``(B, C, *S)``, before softmax.
        features: tap name -> ``(B, c, *s)``, the taps that the method asked for.
    """

    logits: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """Where training is; schedules of weights read it."""

    epoch: int
    epochs: int
    step: int
    steps: int

    @property
    def fraction(self) -> float:
        """Share of the epochs that are done, in [0, 1)."""
        return self.epoch / self.epochs


@dataclass(frozen=True)
class Context:
    """What a method may know when it builds its adapters and memory banks."""

    num_classes: int
    spatial_dims: int
    student: Mapping[str, TapSpec] = field(default_factory=dict)
    teacher: Mapping[str, TapSpec] = field(default_factory=dict)


class Distiller(nn.Module, ABC):
    """Base of every method.

    Parameters of a subclass (adapters) are trained with the student, its buffers (memory banks)
    are saved with the checkpoint, and neither is part of the exported student.
    """

    #: False for methods that learn from labels or from the student itself
    needs_teacher: ClassVar[bool] = True

    def __init__(self, params: Any, context: Context):
        super().__init__()
        self.params = params
        self.context = context

    def student_taps(self) -> tuple[str, ...]:
        """Names of the student's features that `forward` wants."""
        return ()

    def teacher_taps(self) -> tuple[str, ...]:
        """Names of the teacher's features that `forward` wants."""
        return ()

    @abstractmethod
    def forward(
        self, student: Outputs, teacher: Outputs | None, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the weighted scalar terms that are added to the segmentation loss.

        Args:
            student: outputs with gradient.
            teacher: outputs without gradient; None where `needs_teacher` is False.
            target: labels ``(B, *S)``, integers.
            progress: for schedules; a term whose weight is 0 is left out, not computed.
        """

    def critic_loss(self, student: Outputs, teacher: Outputs | None) -> Tensor | None:
        """Loss of an adversary, stepped by an optimiser of its own; None: no adversary."""
        return None

    def critic_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters that `critic_loss` trains; they are kept out of the student's optimiser."""
        return ()
