r"""CIRKD: similarities of pixels across images, within the batch and against a memory, agree.

Paper: Yang, Zhou, An, Jiang, Xu, Zhang: Cross-Image Relational Knowledge Distillation for Semantic
    Segmentation, CVPR 2022 (arXiv:2204.06986).

Idea: What a place resembles, in its own image and in others, tells more than its own logits. The
    student copies the teacher's softened similarities between all places of a batch, and between
    labelled places and queues of the teacher's features of each class, single and class means.

Equation:

.. math::

    L = w_{kd} L_{KD} + \frac{w_b}{B^2}\sum_{ij} \frac1n\sum_r
        KL(\sigma(A^t_{ij}/\tau_b)_r \,\|\, \sigma(A^s_{ij}/\tau_b)_r)
        + \sum_{m \in \{p, r\}} \frac{w_m}{|V|}\sum_{v \in V}
        KL(\sigma(Q_m f^t_v/\tau_m) \,\|\, \sigma(Q_m f^s_v/\tau_m))

    A_{ij} = \hat F_i^\top \hat F_j, \quad \sigma = softmax, \quad
    Q_p, Q_r: \text{keys drawn from the queues of voxels and of class means}

Taps: logits; ``penult`` of both (``student_tap``, ``teacher_tap``), averaged to a common grid: the
    coarser of the two, divided by ``pool``. Labels are resized to it, nearest.

Provenance:
- stated: the three relations, KD beside them, queues of classes.
- code: temperatures 1 (KD) and 0.1, weights 1, 1, 0.1, 0.1 (CIRKD); pooling by 2, voxels of the
  background are no anchors, 96 keys of each class, 16 voxels of a class and sample enqueued
  (ACF-BCKD); the projection 1×1, batch norm, ReLU, 1×1.
- ours: the caps of ``grid`` and ``anchors``, and queues of 2048 and 256 vectors a class.

Deviations: The public code fills the voxel queue of a class from arbitrary places of the image;
    here from the class's own voxels (``class_pure: false`` is the published behaviour). Queues of
    20 000 and 2000 vectors are published (``pixel_queue``, ``region_queue``), 143 MB for 14 classes
    and 128 channels. Relations between more than 8³ (16²) places and more than 4096 anchors do not
    fit beside a network, so both are capped; raise ``grid`` and ``anchors`` for all of them.
    ACF-BCKD relates the first sample to itself only, with temperature 1 (``single_batch: true``,
    ``tau_batch: 1``), and keeps for the background a queue of random vectors that it never fills;
    here the background has no queue, or with ``background: true`` a queue and anchors like the
    others, as CIRKD has for its street scenes. The KD term of overlapping regions is Bernoulli, not
    softmax; each region has its own queues. Where a batch has no anchor, the memory terms are 0.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.discover import Field, Parameters
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.methods.kd import kd_loss
from kdpipe.terms.adapters import batch_norm, pointwise
from kdpipe.terms.divergences import soft_kl
from kdpipe.terms.features import common_size, normalised, pool_to
from kdpipe.terms.masks import class_centres, class_masks, resize_target
from kdpipe.terms.relations import default_grid, relation_kl
from kdpipe.terms.weights import weighted

#: added to norms; so small that unit vectors are the published ones to seven digits
_EPS = 1e-7


class Params(Parameters):
    """Taps, weights, temperatures and the size of relations and memory."""

    student_tap: str = Field("penult", description="logical name of the student's feature")
    teacher_tap: str = Field("penult", description="logical name of the teacher's feature")
    weight_kd: float = Field(1.0, ge=0)
    weight_batch: float = Field(1.0, ge=0, description="of the relations within the batch")
    weight_pixel: float = Field(0.1, ge=0, description="of the relations to the voxel queue")
    weight_region: float = Field(0.1, ge=0, description="of the relations to the class means")
    tau: float = Field(1.0, gt=0, description="temperature of the logits")
    tau_batch: float = Field(0.1, gt=0, description="temperature of similarities within the batch")
    tau_memory: float = Field(0.1, gt=0, description="temperature of similarities to the queues")
    pool: int = Field(2, ge=1, description="feature voxels a side that are averaged into a place")
    grid: int | None = Field(
        None, ge=1, description="places a side within the batch at most; null: 16 in 2D, 8 in 3D"
    )
    single_batch: bool = Field(False, description="relate only the first sample, to itself")
    background: bool = Field(False, description="the background has queues and anchors too")
    anchors: int = Field(4096, ge=1, description="labelled places of a batch at most, drawn")
    pixel_queue: int = Field(2048, ge=1, description="voxels kept of each class")
    region_queue: int = Field(256, ge=1, description="class means kept of each class")
    pixels: int = Field(16, ge=0, description="voxels of a class and sample enqueued at most")
    keys: int = Field(96, ge=1, description="keys of each class drawn from each queue")
    class_pure: bool = Field(True, description="false: enqueue voxels of any class, as published")


def batch_relation_loss(
    student: Tensor, teacher: Tensor, tau: float, single_batch: bool = False
) -> Tensor:
    """Return the mean divergence of softened similarities over all pairs of samples.

    Args:
        student: feature at places ``(B, c, n)``.
        teacher: ``(B, C, n)``, the same places; gets no gradient.
        tau: temperature of the cosines, > 0.
        single_batch: only the first sample, with itself.
    """
    ours = normalised(student, dim=1, eps=_EPS)
    theirs = normalised(teacher.detach(), dim=1, eps=_EPS)
    if single_batch:
        ours, theirs = ours[:1], theirs[:1]
    rows = [  # one sample against all: the matrix of the whole batch would be B times larger
        relation_kl(our.transpose(0, 1) @ ours, their.transpose(0, 1) @ theirs, tau)
        for our, their in zip(ours, theirs, strict=True)
    ]
    return torch.stack(rows).mean()


def memory_loss(student: Tensor, teacher: Tensor, keys: Tensor, tau: float) -> Tensor:
    """Return the mean divergence of softened similarities to keys; 0 if there is no anchor.

    Args:
        student: projected unit vectors of the anchors ``(a, C)``.
        teacher: unit vectors ``(a, C)``; gets no gradient.
        keys: unit vectors ``(m, C)`` of the teacher.
        tau: temperature of the cosines, > 0.
    """
    divergence = soft_kl(student @ keys.T, teacher.detach() @ keys.T, tau, dim=1)
    return divergence.sum() / max(1, len(student))


class ClassQueue(nn.Module):
    """Unit vectors, first in first out, one ring for each class; random ones to begin with."""

    keys: Tensor
    pointer: Tensor

    def __init__(self, classes: int, size: int, channels: int):
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(classes, size, channels), dim=2))
        self.register_buffer("pointer", torch.zeros(classes, dtype=torch.long))

    @torch.no_grad()
    def push(self, row: int, vectors: Tensor) -> None:
        """Replace the oldest vectors of a class by unit vectors of `vectors` ``(n, C)``."""
        size = self.keys.shape[1]
        newest = F.normalize(vectors, dim=1)[-size:]
        slots = self.pointer[row] + torch.arange(len(newest), device=self.keys.device)
        self.keys[row, slots % size] = newest.to(self.keys.dtype)
        self.pointer[row] = (self.pointer[row] + len(newest)) % size

    def draw(self, count: int) -> Tensor:
        """Return `count` keys of each class (all if there are fewer), the same slots of each."""
        slots = torch.randperm(self.keys.shape[1])[:count].to(self.keys.device)
        return self.keys[:, slots].flatten(0, 1)


class Memory(nn.Module):
    """Queues of the teacher's features, and the projection that brings the student to them.

    Args:
        spatial_dims: 2 or 3.
        student: channels of the student's feature.
        teacher: channels of the teacher's feature.
        classes: how many queues.
        params: the method's.
    """

    def __init__(self, spatial_dims: int, student: int, teacher: int, classes: int, params: Any):
        super().__init__()
        self.params = params
        self.project = nn.Sequential(
            pointwise(spatial_dims, student, teacher),
            batch_norm(spatial_dims, teacher),
            nn.ReLU(),
            pointwise(spatial_dims, teacher, teacher),
        )
        self.pixel_queue = ClassQueue(classes, params.pixel_queue, teacher)
        self.region_queue = ClassQueue(classes, params.region_queue, teacher)

    def enqueue_pixels(self, units: Tensor, masks: Tensor) -> None:
        """Push some places of each class of each sample.

        Args:
            units: the teacher's unit vectors ``(B, C, *s)``.
            masks: boolean ``(B, K, *s)``.
        """
        for vectors, inside in zip(units.flatten(2).transpose(1, 2), masks.flatten(2), strict=True):
            for row, mask in enumerate(inside):
                places = mask.nonzero().squeeze(1)
                drawn = torch.randperm(len(places))[: self.params.pixels].to(units.device)
                # the public code takes the draw itself for places, which have any class
                self.pixel_queue.push(
                    row, vectors[places[drawn] if self.params.class_pure else drawn]
                )

    def enqueue_regions(self, units: Tensor, masks: Tensor) -> None:
        """Push the mean of each class of each sample; arguments as for `enqueue_pixels`."""
        for centres, present in zip(*class_centres(units, masks), strict=True):
            for row in present.nonzero().squeeze(1).tolist():
                self.region_queue.push(row, centres[row : row + 1])

    def forward(self, student: Tensor, units: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Return the terms ``pixel`` and ``region`` against the queues as they are.

        Args:
            student: feature ``(B, c, *s)``.
            units: the teacher's unit vectors ``(B, C, *s)``; get no gradient.
            masks: boolean ``(B, K, *s)``; a place inside any of them is an anchor.
        """
        params = self.params
        anchors = masks.any(1).flatten().nonzero().squeeze(1)
        if len(anchors) > params.anchors:
            drawn = torch.randperm(len(anchors))[: params.anchors]
            anchors = anchors[drawn.to(anchors.device)]
        projected = self.project(student).movedim(1, -1).flatten(0, -2)[anchors]
        ours = normalised(projected, dim=1, eps=_EPS)
        theirs = units.detach().movedim(1, -1).flatten(0, -2)[anchors]

        def loss(queue: ClassQueue) -> Tensor:
            return memory_loss(ours, theirs, queue.draw(params.keys), params.tau_memory)

        return weighted(
            pixel=(params.weight_pixel, lambda: loss(self.pixel_queue)),
            region=(params.weight_region, lambda: loss(self.region_queue)),
        )


class Method(Distiller):
    """KD, relations within the batch, and relations to a memory."""

    floor: ClassVar[float | None] = None  # the projection stands between the two
    order_matters: ClassVar[bool] = True  # places and keys are drawn

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        student, teacher = self.compare(params.student_tap, params.teacher_tap)
        self.grid = params.grid or default_grid(context.spatial_dims)
        self.first = 0 if self.regions or params.background else 1
        self.memory: Memory | None = None
        if params.weight_pixel or params.weight_region:
            classes = context.num_classes - self.first
            dims, ours, theirs = context.spatial_dims, student.channels, teacher.channels
            self.memory = Memory(dims, ours, theirs, classes, params)

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the terms ``kd``, ``batch``, ``pixel`` and ``region``; fill the queues."""
        params = self.params
        ours, theirs = student.features[params.student_tap], teacher.features[params.teacher_tap]
        size = [-(-side // params.pool) for side in common_size(ours, theirs)]

        def batch() -> Tensor:
            grid = [min(self.grid, side) for side in size]
            nodes = pool_to(ours, grid).flatten(2), pool_to(theirs, grid).flatten(2)
            return batch_relation_loss(*nodes, params.tau_batch, params.single_batch)

        terms = weighted(
            kd=(
                params.weight_kd,
                lambda: kd_loss(student.logits, teacher.logits, params.tau, self.regions),
            ),
            batch=(params.weight_batch, batch),
        )
        if self.memory is not None:
            terms |= self._remember(pool_to(ours, size), pool_to(theirs, size), target)
        return terms

    def _remember(self, student: Tensor, teacher: Tensor, target: Tensor) -> dict[str, Tensor]:
        assert self.memory is not None
        units = normalised(teacher, dim=1, eps=_EPS)
        labels = resize_target(target, teacher.shape[2:], self.regions)
        masks = class_masks(labels, self.context.num_classes, self.regions)[:, self.first :]
        self.memory.enqueue_pixels(units, masks)
        self.memory.enqueue_regions(units, masks)
        terms: dict[str, Tensor] = self.memory(student, units, masks)
        return terms
