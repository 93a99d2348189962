"""What a distillation method is: a module that turns two networks' outputs into loss terms.

A method is one file: pure loss functions of tensors and a ``class Method(Distiller)``. It sees
logits and features by logical tap name (``enc1``, ``dec2``, ``penult``, ...), never a network.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdpipe.errors import ConfigError, did_you_mean
from kdpipe.terms.segmentation import dice_ce

Side = Literal["student", "teacher"]


@dataclass(frozen=True)
class TapSpec:
    """Facts of a recorded feature: channels, and input voxels per feature voxel by axis.

    `is_logits` says that it is the network's output itself, as a last decoder stage may be.
    """

    channels: int
    stride: tuple[float, ...]
    is_logits: bool = False


@dataclass
class Outputs:
    """What one network gave for a batch.

    Attributes:
        logits: ``(B, C, *S)``, before softmax (classes) or sigmoid (regions).
        features: tap name -> ``(B, c, *s)``, the taps that the method asked for.
    """

    logits: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)

    def map(self, function: Callable[[Tensor], Tensor]) -> Outputs:
        """Return the outputs with `function` applied to each tensor."""
        features = {name: function(feature) for name, feature in self.features.items()}
        return Outputs(function(self.logits), features)


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

    def ramp(self, share: float) -> float:
        """Return a factor that rises linearly to 1 over the first `share` of all steps, > 0."""
        return min(1.0, (self.step + 1) / max(1.0, share * self.steps))


@dataclass(frozen=True)
class Context:
    """What a method may know when it builds its adapters and memory banks.

    Attributes:
        num_classes: channels of the logits: classes with the background, or regions.
        spatial_dims: 2 or 3.
        student: the student's taps.
        teacher: the teacher's taps; the student's own where the teacher is its past self.
        targets: ``classes`` (softmax, labels ``(B, *S)``) or ``regions`` (overlapping sigmoid
            channels, labels ``(B, C, *S)`` of 0 and 1).
        segmentation_loss: the study's loss of logits ``(B, C, *S)`` against the target, for
            auxiliary heads.
    """

    num_classes: int
    spatial_dims: int
    student: Mapping[str, TapSpec] = field(default_factory=dict)
    teacher: Mapping[str, TapSpec] = field(default_factory=dict)
    targets: Literal["classes", "regions"] = "classes"
    segmentation_loss: Callable[[Tensor, Tensor], Tensor] = dice_ce

    def tap(self, side: Side, name: str) -> TapSpec:
        """Return the facts of a tap.

        Raises:
            ConfigError: that network has no such tap; the message lists those it has.
        """
        taps = self._taps(side)
        if name not in taps:
            raise ConfigError(f"the {side} has no tap {name!r}: {did_you_mean(name, taps)}")
        return taps[name]

    def encoders(self, side: Side) -> list[str]:
        """Return ``enc1..encN`` of a network, finest first."""
        return _numbered(self._taps(side), "enc")

    def decoders(self, side: Side) -> list[str]:
        """Return ``dec1..decM`` of a network, coarsest first; the last may be the logits."""
        return _numbered(self._taps(side), "dec")

    def stage_pairs(self) -> list[tuple[str, str]]:
        """Return (student tap, teacher tap) of all stages that both have, encoder to decoder.

        Encoder stages and decoder stages are paired from the finest on; the bottleneck with the
        bottleneck. Grids and channels of a pair may differ. A stage that is the logits has a
        partner only in one that is the logits too.
        """
        pairs = list(zip(self.encoders("student"), self.encoders("teacher"), strict=False))
        if "bottleneck" in self.student and "bottleneck" in self.teacher:
            pairs.append(("bottleneck", "bottleneck"))
        ours, theirs = self.decoders("student")[::-1], self.decoders("teacher")[::-1]
        pairs += list(zip(ours, theirs, strict=False))[::-1]
        return [(s, t) for s, t in pairs if self.student[s].is_logits == self.teacher[t].is_logits]

    def _taps(self, side: Side) -> Mapping[str, TapSpec]:
        return self.student if side == "student" else self.teacher


class Distiller(nn.Module, ABC):
    """Base of every method.

    Parameters of a subclass (adapters) are trained with the student, its buffers (memory banks)
    are saved with the checkpoint, and neither is part of the exported student.

    The class attributes are literals: they are read from the source, without importing torch.
    """

    #: False for methods that learn from labels or from the student itself
    needs_teacher: ClassVar[bool] = True
    #: True: `teacher` is the student itself as the previous epoch left it (no teacher is trained)
    past_self: ClassVar[bool] = False
    #: True: neither the paper in full nor its authors' code settles what it is, as far as could be
    #: read; the docstring says what is stated and what is ours
    is_reading: ClassVar[bool] = False
    #: sum of the terms where student and teacher give the same; None: there is no such number
    floor: ClassVar[float | None] = 0.0
    #: True: the order of a batch's samples changes the terms (random draws, pairs of neighbours)
    order_matters: ClassVar[bool] = False
    #: with fewer channels of logits than this the method raises ConfigError
    least_classes: ClassVar[int] = 2

    def __init__(self, params: Any, context: Context):
        super().__init__()
        self.params = params
        self.context = context
        #: (student tap, teacher tap) of the features that are compared
        self.pairs: list[tuple[str, str]] = []

    @property
    def regions(self) -> bool:
        """True where the logits are overlapping regions (sigmoid), False for classes (softmax)."""
        return self.context.targets == "regions"

    def compare(self, student_tap: str, teacher_tap: str) -> tuple[TapSpec, TapSpec]:
        """Add a pair of features that `losses` wants, and return the facts of both.

        Raises:
            ConfigError: a network has no such tap.
        """
        self.pairs.append((student_tap, teacher_tap))
        return self.context.tap("student", student_tap), self.context.tap("teacher", teacher_tap)

    def student_taps(self) -> tuple[str, ...]:
        """Names of the student's features that `losses` wants: by default those of `pairs`."""
        return tuple(ours for ours, _ in self.pairs)

    def teacher_taps(self) -> tuple[str, ...]:
        """Names of the teacher's features that `losses` wants: by default those of `pairs`."""
        return tuple(theirs for _, theirs in self.pairs)

    def forward(
        self, student: Outputs, teacher: Outputs | None, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the terms of `losses`, computed in float32 (or wider) and outside autocast.

        The teacher's tensors are detached here, once for all methods.
        """
        with torch.autocast(student.logits.device.type, enabled=False):
            taught = teacher.map(lambda tensor: _widened(tensor.detach())) if teacher else None
            return self.losses(student.map(_widened), taught, target, progress)

    @abstractmethod
    def losses(
        self, student: Outputs, teacher: Any, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the weighted scalar terms that are added to the segmentation loss.

        Args:
            student: outputs with gradient, float32.
            teacher: outputs without gradient; None where there is no teacher.
            target: labels, integers ``(B, *S)``, or for regions 0 and 1 in ``(B, C, *S)``.
            progress: for schedules; a term whose weight is 0 is left out, not computed.
        """

    # for the methods that need more than terms

    def paced_parameters(self) -> Iterable[tuple[nn.Parameter, float]]:
        """Parameters with a factor on the learning rate; these get no weight decay."""
        return ()

    def diagnostics(self) -> dict[str, float]:
        """Numbers to log once an epoch, a learned temperature for instance."""
        return {}

    def prefit_steps(self) -> int:
        """How many batches `prefit` wants to see before the student's training; 0: none."""
        return 0

    def prefit(self, teacher: Iterable[Outputs]) -> None:
        """Train parts of the method on what the teacher gives for training batches."""

    def critic_loss(self, student: Outputs, teacher: Outputs | None) -> Tensor | None:
        """Loss of an adversary, stepped by an optimiser of its own; None: no adversary."""
        return None

    def critic_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters that `critic_loss` trains; they are kept out of the student's optimiser."""
        return ()


def _widened(tensor: Tensor) -> Tensor:
    """The tensor in float32 if it is in half precision, itself otherwise."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _numbered(taps: Iterable[str], prefix: str) -> list[str]:
    found = [name for name in taps if re.fullmatch(rf"{prefix}\d+", name)]
    return sorted(found, key=lambda name: int(name.removeprefix(prefix)))
