"""A trained nnU-Net v2 model: its U-Net of one fold, or an ensemble of folds.

``path`` is the model's folder (``nnUNet_results/Dataset.../Trainer__Plans__configuration``) with
plans.json, dataset.json and fold_*/checkpoint_*.pth. The network is built from the plans alone; the
package nnunetv2 is not used, dynamic-network-architectures is.

Source: Isensee et al., "nnU-Net" (Nature Methods 2021); Isensee et al., "nnU-Net Revisited" (MICCAI
2024) for residual encoders. nnU-Net works on transposed arrays, here kernels and strides are
turned once, so that image and every feature are x, y, z. Deep supervision is off. Test-time
mirroring is not part of the network. An ensemble averages the folds' logits, as nnU-Net does; its
taps are those of the first fold. Classes, or regions, are in the order of dataset.json.
`kdpipe.nnunet_plans.preset_from_plans` gives the preparation.

With n stages in the plans: ``enc1..enc<n-1>`` encoder stages, ``bottleneck`` the last one,
``dec1..dec<n-1>`` decoder stages; ``penult`` the finest of them, ``pre_act`` its last convolution
(not for a residual decoder); ``logits``. ``taps`` adds or replaces, by paths in one fold's network.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdpipe.discover import Parameters
from kdpipe.errors import ConfigError, DataError
from kdpipe.nets._foreign import check_channels, check_taps, freeze, model_path
from kdpipe.nets.base import COPY, INPUT
from kdpipe.nnunet_plans import Plans, read_plans

TRAINED = True
FILES = (
    "plans.json",
    "dataset.json",
    "fold_*/checkpoint_final.pth",
    "fold_*/checkpoint_best.pth",
)

PACKAGE = "dynamic_network_architectures"
ARCHITECTURES = ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet")


class Params(Parameters):
    """Parameters of the network."""

    path: str = Field(description="the model's folder")
    configuration: str = Field("3d_fullres", description="its name in plans.json")
    folds: tuple[int | Literal["all"], ...] = Field((0,), min_length=1, description="to average")
    checkpoint: Literal["checkpoint_final.pth", "checkpoint_best.pth"] = Field(
        "checkpoint_final.pth", description="which weights of a fold"
    )
    taps: dict[str, str] = Field({}, description="stage -> module path, besides the network's own")


class Ensemble(nn.Module):
    """The mean of the members' logits."""

    def __init__(self, members: list[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(B, out_channels, *S)``."""
        total: Tensor = self.members[0](image)
        for member in self.members[1:]:
            total = total + member(image)
        return total / len(self.members)


def build(params: Params, *, in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return the network: ``(B, in_channels, *S)`` -> logits ``(B, out_channels, *S)``."""
    plans = _plans(params)
    who = f"network 'nnunet' ({params.path}, {params.configuration})"
    if plans.spatial_dims != spatial_dims:
        raise ConfigError(
            f"{who} is {plans.spatial_dims}D, the patch has {spatial_dims} sides: take another "
            "configuration, or the preset that belongs to this one"
        )
    check_channels(who, "image channels", plans.in_channels, in_channels)
    what = "classes (labels with background, or regions)"
    check_channels(who, what, plans.out_channels, out_channels)
    members = []
    for fold in params.folds:
        network = build_architecture(plans)
        load_weights(network, plans.file.parent / f"fold_{fold}" / params.checkpoint, plans)
        members.append(network)
    check_taps(who, members[0], params.taps)
    return freeze(members[0] if len(members) == 1 else Ensemble(members))


def stages(params: Params) -> dict[str, str]:
    """Return logical tap name -> place in the built network."""
    prefix = "members.0." if len(params.folds) > 1 else ""
    places = _unet_stages(_plans(params)) | params.taps
    return {name: f"{prefix}{place}" for name, place in places.items()} | {"logits": ""}


def divisor(params: Params) -> tuple[int, ...]:
    """Return the numbers that patch sides are multiples of, one an axis."""
    return _plans(params).reduction()


def build_architecture(plans: Plans) -> nn.Module:
    """Build the plans' U-Net for axes x, y, z, with random weights and deep supervision off.

    Raises:
        ConfigError: the architecture is another, or its package is missing.
    """
    dotted, arguments, classes = plans.architecture()
    kind = dotted.rpartition(".")[2]
    if kind not in ARCHITECTURES:
        raise ConfigError(
            f"{plans.file}: architecture {dotted!r} is none of {', '.join(ARCHITECTURES)}, whose "
            "axes can be turned; write the network with torch.export and take 'exported'"
        )
    try:
        found = {name: _locate(arguments[name]) for name in classes if arguments.get(name)}
        network = _locate(f"{PACKAGE}.architectures.unet.{kind}")(
            input_channels=plans.in_channels,
            num_classes=plans.out_channels,
            **(arguments | found | {"deep_supervision": False}),
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"network 'nnunet' needs the package {error.name!r}: pip install \"kdpipe[nnunet]\""
        ) from None
    except (AttributeError, TypeError, AssertionError) as error:
        raise DataError(
            f"{plans.file}: the installed {PACKAGE} cannot build {kind} from it ({error}); install "
            "the release of that package with which the model was trained"
        ) from None
    assert isinstance(network, nn.Module)
    return network


def load_weights(network: nn.Module, file: Path, plans: Plans) -> None:
    """Load a fold's weights, the kernels' axes turned to x, y, z.

    Raises:
        ConfigError: there is no such file, or its weights are those of another network.
        DataError: it is not readable.
    """
    if not file.is_file():
        folder = file.parent.parent
        there = sorted(str(found.relative_to(folder)) for found in folder.glob("fold_*/*.pth"))
        raise ConfigError(
            f"network 'nnunet': {file} is not there; set 'folds' and 'checkpoint' to what there "
            f"is: {', '.join(there) or 'none'}"
        )
    try:
        with _numpy_scalars():
            weights = torch.load(file, map_location="cpu", weights_only=True)["network_weights"]
    except Exception as error:  # of the archive, its pickle, or a missing key
        raise DataError(
            f"{file} is not readable as an nnU-Net v2 checkpoint ({_brief(error)}); copy it again, "
            "or, if a trainer stored objects in it, write it anew with its 'network_weights' only"
        ) from None
    turn = (0, 1, *(2 + axis for axis in plans.order))
    turned = {
        name.removeprefix("module.").removeprefix("_orig_mod."): (
            weight.permute(turn).contiguous() if weight.dim() == len(turn) else weight
        )
        for name, weight in weights.items()
    }
    try:
        network.load_state_dict(turned)
    except RuntimeError as error:
        raise ConfigError(
            f"{file} was not trained with the architecture in {plans.file} ({_brief(error)}); give "
            "the 'configuration' of this folder's name. If the trainer itself changed the network, "
            "write it with torch.export and take 'exported'"
        ) from None


def _plans(params: Params) -> Plans:
    folder = model_path("nnunet", params.path, folder=True)
    return read_plans(folder, params.configuration)


def _unet_stages(plans: Plans) -> dict[str, str]:
    dotted, arguments, _ = plans.architecture()
    bottom = arguments["n_stages"] - 1
    last = bottom - 1
    places = {f"enc{level + 1}": f"encoder.stages.{level}" for level in range(bottom)}
    places["bottleneck"] = f"encoder.stages.{bottom}"
    places |= {f"dec{step + 1}": f"decoder.stages.{step}" for step in range(bottom)}
    if not dotted.endswith(".ResidualUNet"):
        # without a norm in between, the activation may overwrite what the convolution gave
        between = arguments.get("norm_op") and not arguments.get("nonlin_first")
        counts = arguments["n_conv_per_stage_decoder"]
        count = counts if isinstance(counts, int) else counts[last]
        path = f"decoder.stages.{last}.convs.{count - 1}.conv"
        places["pre_act"] = path if between else f"{path}{COPY}"
    return places | {"penult": f"decoder.seg_layers.{last}{INPUT}"}


def _locate(dotted: str) -> Any:
    """Return a class by its dotted name, from torch or the architectures only."""
    owner, _, name = dotted.rpartition(".")
    if owner.partition(".")[0] not in ("torch", PACKAGE):
        raise TypeError(f"{dotted!r} is neither of torch nor of {PACKAGE}")
    return getattr(importlib.import_module(owner), name)


@contextmanager
def _numpy_scalars() -> Iterator[None]:
    """Let checkpoints hold NumPy numbers (of their log), by NumPy's old and new module names."""
    import numpy as np

    scalar = np.array(0.0)[()].__reduce__()[0]
    number_types = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "b1")]
    allowed: list[Any] = [np.dtype, *number_types]
    allowed += [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    with torch.serialization.safe_globals(allowed):
        yield


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
