"""A trained nnU-Net v2 model's own account of itself: its axes, architecture and preparation.

Such a model is a folder with ``plans.json``, ``dataset.json`` and one ``fold_<k>`` a fold. nnU-Net
reads arrays ``(z, y, x)`` and then moves their axes by the plan's `transpose_forward`; here every
list of sides is turned back to kdpipe's ``x, y, z``. Plans of before nnU-Net 2.4 are understood.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdpipe.errors import ConfigError, DataError, did_you_mean
from kdpipe.presets import Intensity, Preset, Rescale, Standardize, Unchanged, Window, ZScore

ORIENTATIONS: dict[str, str | None] = {
    "SimpleITKIO": None,
    "NibabelIO": None,
    "SimpleITKIOWithReorient": "RAS",
    "NibabelIOWithReorient": "RAS",
}
"""nnU-Net's readers of medical images -> the orientation that they turn images to; None: none."""


def preset_from_plans(folder: Path, configuration: str = "3d_fullres") -> Preset:
    """Return the preparation that a trained nnU-Net expects, as a preset of a data set card.

    Differences that remain: nnU-Net crops to the non-zero box first (a z-score without mask is
    over that box), scales intensities before it resamples, interpolates strongly anisotropic
    images slice by slice, and lays the resampled grid edge to edge.

    Args:
        folder: of the trained model.
        configuration: its name in plans.json.

    Raises:
        ConfigError: no such model or configuration, or one that cannot be reproduced here.
        DataError: a file that is not readable as JSON, or lacks an entry.
    """
    return read_plans(folder, configuration).preset()


@dataclass(frozen=True)
class Plans:
    """What plans.json and dataset.json say of one configuration.

    Attributes:
        file: plans.json, named in errors.
        plan: all of plans.json.
        settings: the configuration, with what it inherits.
        dataset: all of dataset.json.
        order: for each axis of kdpipe (x, y[, z]) its position among the network's axes.
    """

    file: Path
    plan: Mapping[str, Any]
    settings: Mapping[str, Any]
    dataset: Mapping[str, Any]
    order: tuple[int, ...]

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return len(self.order)

    @property
    def in_channels(self) -> int:
        """Channels of the image."""
        return len(self.dataset.get("channel_names", self.dataset.get("modality", ())))

    @property
    def out_channels(self) -> int:
        """Labels with background, or regions without, if labels are regions."""
        groups = self._labels()
        if _overlap(groups):
            return sum(ids != {0} for ids in groups.values())
        return len(set().union(*groups.values()))

    @property
    def structures(self) -> list[str]:
        """Names of labels or regions without the background, in the order of the channels."""
        groups = {name: ids for name, ids in self._labels().items() if ids != {0}}
        return list(groups) if _overlap(groups) else sorted(groups, key=lambda n: min(groups[n]))

    def _labels(self) -> dict[str, set[int]]:
        return {
            name: set(value) if isinstance(value, list) else {value}
            for name, value in self.dataset["labels"].items()
            if name != "ignore"
        }

    def architecture(self) -> tuple[str, dict[str, Any], list[str]]:
        """Return class name, arguments with axes x, y, z, and which arguments name a class."""
        given = self.settings.get("architecture") or _old_architecture(self.settings)
        arguments = dict(given["arch_kwargs"])
        for name in ("kernel_sizes", "strides"):
            if isinstance(arguments.get(name), list):
                arguments[name] = [self._turned(value) for value in arguments[name]]
        return given["network_class_name"], arguments, list(given["_kw_requires_import"])

    def reduction(self) -> tuple[int, ...]:
        """Return the stride of the coarsest stage along each axis."""
        strides = self.architecture()[1]["strides"]
        dims = range(self.spatial_dims)
        rows = [[row] * len(dims) if isinstance(row, int) else row for row in strides]
        return tuple(math.prod(row[axis] for row in rows) for axis in dims)

    def preset(self) -> Preset:
        """Return patch and preparation."""
        channels = tuple(self._intensity(channel) for channel in range(self.in_channels))
        interpolation = self.settings.get("resampling_fn_data_kwargs", {}).get("order", 3)
        reader = self.plan.get("image_reader_writer", "SimpleITKIO")
        if reader not in ORIENTATIONS:
            raise ConfigError(
                f"{self.file}: images were read by {reader!r}, whose axes are not those of a "
                f"medical image; only {', '.join(ORIENTATIONS)} can be reproduced"
            )
        return Preset.model_validate(
            {
                "orientation": ORIENTATIONS[reader],
                "spacing": self._spacing(),
                "image_interpolation": "bspline" if interpolation > 1 else "linear",
                "intensity": channels[0] if len(channels) == 1 else channels,
                "patch": self._turned(self.settings["patch_size"]),
            }
        )

    def _spacing(self) -> tuple[float | None, ...] | None:
        if "no_resampling" in self.settings.get("resampling_fn_data", ""):
            return None
        spacing = self._turned(self.settings["spacing"])
        return (*spacing, *[None] * (3 - self.spatial_dims))  # slices keep their distance

    def _intensity(self, channel: int) -> Intensity:
        scheme = self.settings["normalization_schemes"][channel]
        if scheme == "CTNormalization":
            kept = "foreground_intensity_properties_per_channel"
            old = "foreground_intensity_properties_by_modality"
            values = self.plan.get(kept, self.plan.get(old, {}))[str(channel)]
            return Standardize(
                kind="standardize",
                low=values["percentile_00_5"],
                high=values["percentile_99_5"],
                mean=values["mean"],
                sd=max(values["std"], 1e-8),  # as nnU-Net
            )
        known: dict[str, Intensity] = {
            "NoNormalization": Unchanged(kind="unchanged"),
            "RescaleTo01Normalization": Rescale(kind="rescale"),
            "RGBTo01Normalization": Window(kind="window", low=0, high=255),
            "ZScoreNormalization": ZScore(
                kind="zscore", nonzero=self.settings["use_mask_for_norm"][channel]
            ),
        }
        if scheme not in known:
            raise ConfigError(
                f"{self.file}: normalisation {scheme!r} of channel {channel} is not nnU-Net's own "
                f"and cannot be reproduced. Valid: CTNormalization, {', '.join(known)}"
            )
        return known[scheme]

    def _turned(self, values: Any) -> Any:
        """One value a network axis -> one an axis x, y[, z]; a single value stays."""
        return [values[axis] for axis in self.order] if isinstance(values, list) else values


def read_plans(folder: Path, configuration: str) -> Plans:
    """Read a model folder's plans.json and dataset.json; raises as `preset_from_plans`."""
    file = folder / "plans.json"
    plan, dataset = _json(file), _json(folder / "dataset.json")
    try:
        settings = _settings(plan["configurations"], configuration, file)
        order = _axis_order(plan["transpose_forward"], len(settings["patch_size"]), file)
        plans = Plans(file, plan, settings, dataset, order)
        _ = plans.out_channels, plans.architecture()  # so that a gap is found here
    except KeyError as error:
        raise DataError(
            f"{folder}: plans.json or dataset.json has no {error}; take both from the folder of a "
            "model that nnU-Net v2 has trained"
        ) from None
    if settings.get("previous_stage"):
        raise ConfigError(
            f"{file}: {configuration!r} is the second stage of a cascade, whose input is another "
            "network's segmentation; take a configuration of one stage, such as '3d_fullres'"
        )
    return plans


def _overlap(groups: Mapping[str, set[int]]) -> bool:
    """Whether these are regions: nnU-Net's rule, a label of more than one id."""
    return any(len(ids) > 1 for ids in groups.values())


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError(
            f"{file} is not there: 'path' must be the folder of a trained nnU-Net v2 model "
            "(nnUNet_results/Dataset.../Trainer__Plans__configuration), which holds plans.json, "
            "dataset.json and fold_0"
        )
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is not readable as JSON ({error}); copy it again") from None
    return content


def _settings(configurations: Mapping[str, Any], name: str, file: Path) -> dict[str, Any]:
    """Return a configuration completed by those that it inherits from."""
    seen: list[str] = []
    settings: dict[str, Any] = {}
    while True:
        if name not in configurations or name in seen:
            raise ConfigError(
                f"{file} has no configuration {name!r}: {did_you_mean(name, configurations)}"
            )
        seen.append(name)
        settings = {**configurations[name], **settings}
        parent = configurations[name].get("inherits_from")
        if parent is None:
            return settings
        name = parent


def _axis_order(transpose: Sequence[int], dims: int, file: Path) -> tuple[int, ...]:
    """Return the position of x, y[, z] among the network's axes.

    Position i of nnU-Net's transposed array is axis ``transpose[i]`` of ``(z, y, x)``. A 2D
    network sees the slices along position 0.
    """
    positions = [2 - axis for axis in transpose]
    if dims == 2 and positions.pop(0) != 2:
        raise ConfigError(
            f"{file}: the 2D network sees slices along {'xyz'[2 - transpose[0]]} of the image, "
            "kdpipe cuts them along z; take a 3D configuration"
        )
    return tuple(positions.index(axis) for axis in range(dims))


def _old_architecture(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what newer plans hold under 'architecture', as nnU-Net itself derives it."""
    kind = settings["UNet_class_name"]
    per_stage = settings["n_conv_per_stage_encoder"]
    dims = len(settings["patch_size"])
    widest, first = settings["unet_max_num_features"], settings["UNet_base_num_features"]
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
        "arch_kwargs": {
            "n_stages": len(per_stage),
            "features_per_stage": [min(first * 2**i, widest) for i in range(len(per_stage))],
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": settings["conv_kernel_sizes"],
            "strides": settings["pool_op_kernel_sizes"],
            "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage": per_stage,
            "n_conv_per_stage_decoder": settings["n_conv_per_stage_decoder"],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
    }
