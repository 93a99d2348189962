"""Settings of the stages: recipes of training, prediction, evaluation, profiling."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from kdpipe.protocols import BANDS, Protocol, check_names, get_protocol
from kdpipe.schema import Strict


class Augmentation(Strict):
    """Random changes of a training crop; a probability of 0 switches one off."""

    flip_probability: float = Field(0.5, ge=0, le=1, description="of each axis in flip_axes")
    flip_axes: tuple[Literal[0, 1, 2], ...] = Field((0, 1, 2), description="x, y, z as prepared")
    rotate90_probability: float = Field(
        0.0, ge=0, le=1, description="of one to three quarter turns in the first two axes"
    )
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
    final_learning_rate: float = Field(0.0, ge=0, description="where poly and cosine end")
    momentum: float = Field(0.9, gt=0, lt=1, description="sgd only")
    nesterov: bool = Field(True, description="sgd only")
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    gradient_clip: float | None = Field(
        12.0, gt=0, description="largest L2 norm, of student and adapters apart; null: none"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on a GPU that has it, else fp32"
    )
    teacher_precision: Literal["same", "fp32", "bf16", "fp16"] = Field(
        "same", description="of the frozen teacher's forward pass"
    )
    channels_last: bool = Field(
        False, description="channels innermost in memory, the layout that bf16 is fastest in"
    )
    compile: bool = Field(
        False,
        description="torch.compile of both networks; it takes seconds to minutes at the start, is "
        "meant for GPUs and brings nothing on a CPU",
    )
    fast: bool = Field(
        False,
        description="bf16 and channels_last where these are not set, and a faster PReLU; results "
        "are equal within the noise of seeds, not to the bit",
    )
    ema_decay: float | None = Field(None, gt=0, lt=1, description="null: no averaging of weights")
    validate_every: int = Field(10, ge=1, description="epochs; the last one is always validated")
    validation_overlap: float = Field(0.25, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _spell_out_fast(cls, given: Any) -> Any:
        """``fast`` stands for two settings; as these they are read, shown and digested."""
        if isinstance(given, dict) and given.get("fast") is True:
            return {"precision": "bf16", "channels_last": True, **given}
        return given


class TrainingRoles(Strict):
    """Training recipes by role."""

    teacher: Training = Training()
    student: Training = Training()


class Inference(Strict):
    """Sliding-window prediction."""

    overlap: float = Field(0.5, ge=0, lt=1)
    window_batch: int = Field(4, ge=1)
    engine: Literal["torch", "openvino"] = Field(
        "torch", description="openvino: on a CPU, needs the extra of that name; labels are checked"
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16 only where the Dice of validation cases does not suffer"
    )
    precision_margin_percent: float = Field(
        0.1, ge=0, description="mean Dice that bf16 may lose on validation cases, in points"
    )


class Evaluation(Strict):
    """Which named metric protocols score the predictions."""

    protocols: tuple[str, ...] = Field(
        ("strict_mm",),
        json_schema_extra={"minItems": 1},
        description="the first decides; each has tables of its own",
    )
    bands: bool = Field(
        True, description="also score errors by distance from the boundary, for a figure"
    )

    @field_validator("protocols")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return check_names(names)

    @property
    def scored(self) -> tuple[Protocol, ...]:
        """All protocols that score the predictions, that of the bands included."""
        return tuple(map(get_protocol, (*self.protocols, *((BANDS,) if self.bands else ()))))

    @property
    def on_prepared_grid(self) -> bool:
        """Whether a protocol needs predictions on the network's own grid."""
        return any(protocol.grid == "prepared" for protocol in self.scored)


class Statistics(Strict):
    """How methods are compared."""

    confidence: float = Field(0.95, gt=0.5, lt=1, description="of the intervals; 1 - alpha")
    margin_percent: float = Field(
        0.5, gt=0, description="differences of Dice, IoU, NSD below this many points do not matter"
    )
    margin_mm: float = Field(
        0.5, gt=0, description="differences of distances below this many mm (voxels) do not matter"
    )
    resamples: int = Field(2000, ge=500, description="of the bootstrap of ranks")
    power: float = Field(0.8, gt=0.5, lt=1, description="for the difference that can be resolved")
    pilot_sd_percent: float = Field(
        4.0, gt=0, description="assumed SD over cases of a paired Dice difference, before the study"
    )


class Search(Strict):
    """Ranges of the trials of a budget: lowest and highest factor, drawn log-uniformly."""

    learning_rate: tuple[float, float] = Field((0.25, 4.0), description="times the recipe's")
    weight: tuple[float, float] = Field(
        (0.1, 10.0), description="times the weight of all terms of a method"
    )

    @field_validator("learning_rate", "weight")
    @classmethod
    def _is_a_range(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if not 0 < limits[0] < limits[1] < math.inf:
            raise ValueError(f"must be two factors, the lower one first, above 0; got {limits}")
        return limits


Form = Literal["onnx", "int8", "torchscript", "program", "bundle"]


class Ship(Strict):
    """Which student the target ``ship`` hands out, and in which forms."""

    forms: tuple[Form, ...] = Field(
        get_args(Form), min_length=1, description="beside model.pt, which is always there"
    )
    max_parameters: int | None = Field(None, gt=0, description="of a student; null: any number")
    max_latency_ms: float | None = Field(
        None, gt=0, description="of one window on the CPU, as 'profile' measures it; null: any"
    )
    max_memory_mb: float | None = Field(
        None, gt=0, description="of one window on the CPU, beside the network; null: any"
    )

    @field_validator("forms")
    @classmethod
    def _each_once(cls, forms: tuple[Form, ...]) -> tuple[Form, ...]:
        if len(set(forms)) != len(forms):
            raise ValueError(f"{', '.join(forms)}: name each form once")
        return forms


class Profile(Strict):
    """How the cost of one sliding window is measured."""

    threads: int = Field(1, ge=1, description="of the CPU")
    repeats: int = Field(7, ge=5, description="forward passes; the median counts")
