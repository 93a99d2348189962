"""Settings of the stages: recipes of training, prediction, evaluation, profiling."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kdpipe.schema import Strict


class Augmentation(Strict):
    """Random changes of a training crop; a probability of 0 switches one off."""

    flip_probability: float = Field(0.5, ge=0, le=1, description="of each axis in flip_axes")
    flip_axes: tuple[Literal[0, 1, 2], ...] = Field((0, 1, 2), description="x, y, z as prepared")
    affine_probability: float = Field(0.3, ge=0, le=1)
    rotation_degrees: float = Field(15.0, ge=0, description="largest angle about each axis")
    zoom: float = Field(0.15, ge=0, lt=1, description="largest relative change of size")
    intensity_probability: float = Field(0.3, ge=0, le=1, description="of each intensity change")
    intensity_scale: float = Field(0.1, ge=0, description="largest relative change")
    intensity_shift: float = Field(0.1, ge=0, description="largest offset, prepared units")
    noise_sd: float = Field(0.05, ge=0, description="largest Gaussian noise, prepared units")


class Training(Strict):
    """How one network is trained. Teachers and students have one of these each."""

    epochs: int = Field(100, ge=1)
    steps_per_epoch: int | None = Field(
        None, ge=1, description="null: as many as pass each training case once"
    )
    batch_size: int = Field(4, ge=1)
    foreground_crops: float = Field(
        0.5, ge=0, le=1, description="share of crops centred on a voxel of a random structure"
    )
    augmentation: Augmentation = Augmentation()
    segmentation_loss: Literal["dice_ce", "dice", "focal_dice"] = "dice_ce"
    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    momentum: float = Field(0.9, gt=0, lt=1, description="sgd only (Nesterov)")
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    gradient_clip: float | None = Field(
        12.0, gt=0, description="largest L2 norm, of student and adapters apart; null: none"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on a GPU that has it, else fp32"
    )
    ema_decay: float | None = Field(None, gt=0, lt=1, description="null: no averaging of weights")
    validate_every: int = Field(10, ge=1, description="epochs; the last one is always validated")
    validation_overlap: float = Field(0.25, ge=0, lt=1)


class TrainingRoles(Strict):
    """Training recipes by role."""

    teacher: Training = Training()
    student: Training = Training()


class Inference(Strict):
    """Sliding-window prediction."""

    overlap: float = Field(0.5, ge=0, lt=1)
    window_batch: int = Field(4, ge=1)


class Evaluation(Strict):
    """Which named metric protocol scores the predictions."""

    protocol: Literal["strict_mm", "medpy", "monai"] = "strict_mm"


class Profile(Strict):
    """How the cost of one sliding window is measured."""

    threads: int = Field(1, ge=1, description="of the CPU")
    repeats: int = Field(7, ge=5, description="forward passes; the median counts")
