"""Take over a teacher that is trained already: build it, validate it, write its ``model.pt``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdpipe.data.targets import Targets
from kdpipe.engine import parallel
from kdpipe.engine.device import compute_dtype, pick_device
from kdpipe.engine.jobs import Job, write_results
from kdpipe.engine.validate import Validator
from kdpipe.errors import ConfigError, DataError
from kdpipe.infer.model import read_tensors
from kdpipe.nets.base import check_patch, dry_forward, network_of

log = logging.getLogger(__name__)
_SHOWN = 3  # names of weights in a message


def adopt(job: Job) -> None:
    """Write the three files of a training for a network that needs none.

    Raises:
        ConfigError: the network cannot be built, or images or the patch do not fit it.
        DataError: its files are damaged or belong to another network.
    """
    spec, patch = job.run["network"], tuple(job.run["patch"])
    check_patch(spec["name"], spec["params"], patch)
    network = network_of(job.run)
    if "weights" in spec:
        load_weights(network, Path(spec["weights"]).expanduser())
    _try_out(network, spec["name"], spec["in_channels"], spec["out_channels"], patch)
    device = pick_device()
    validate = Validator(
        job.store,
        job.split["val"],
        Targets.of(job.run),
        patch,
        job.run["adopt"]["validation_overlap"],
        compute_dtype(job.run["adopt"]["precision"], device),
    )
    dice = validate(network.to(device).eval())
    log.info("taken over, validation Dice %.4f", dice)
    cost = {"seconds": 0.0, "energy_j": 0.0}
    rows = [{"epoch": 0, "step": 0, **cost, "validation_dice": dice}]
    parallel.from_main(
        lambda: write_results(job, network.state_dict(), rows, best_epoch=0, dice=dice)
    )


def load_weights(network: nn.Module, file: Path) -> None:
    """Load a checkpoint into a network of the catalogue.

    Understood are a state dict, one inside ``state_dict``, ``model``, ``network_weights`` or
    ``weights`` (kdpipe's own ``model.pt``), and names that begin with ``module.``.

    Raises:
        DataError: the file is unreadable, holds no weights, some that are not finite, or those of
            another network.
    """
    try:
        content = read_tensors(file)
    except ValueError as error:
        raise DataError(
            f"{file}: not readable as weights ({error}): it is damaged, or holds more than tensors "
            "and plain values; save the network's state_dict() with torch.save"
        ) from None
    weights = _state_dict(content)
    if weights is None:
        raise DataError(f"{file}: holds no weights; save the network's state_dict()")
    if wrong := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise DataError(f"{file}: {wrong[0]} is not finite; take a checkpoint from before that")
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(f"{file}: {_difference(network, weights, error)}") from None


def _try_out(
    network: nn.Module, name: str, channels: int, classes: int, patch: Sequence[int]
) -> None:
    """Raise ConfigError unless one patch gives logits of its size; a program may take any."""
    image, wanted = (1, channels, *patch), (1, classes, *patch)
    try:
        given = tuple(dry_forward(network, image).shape)
    except RuntimeError as error:  # a compiled program ends its message with the cause
        reason = (str(error).strip().splitlines() or ["no reason given"])[-1]
        raise ConfigError(
            f"network {name!r} does not run on an image (batch, channels, sides) of {image} "
            f"({reason}): take a network of this data set, or a patch that fits it"
        ) from None
    if given != wanted:
        raise ConfigError(
            f"network {name!r} gives logits of {given} for a patch, {wanted} are needed: take "
            "another patch (state its 'divisor'), or a network whose logits are as large as images"
        )


def _state_dict(content: Any) -> dict[str, Tensor] | None:
    if not isinstance(content, Mapping):
        return None
    for key in ("state_dict", "model", "network_weights", "weights"):
        if isinstance(content.get(key), Mapping):
            return _state_dict(content[key])
    if not content or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        return None
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): value for name, value in content.items()}


def _difference(network: nn.Module, weights: dict[str, Tensor], error: Exception) -> str:
    """How the weights of a file differ from those that a network wants."""
    wanted = network.state_dict()
    lacking, unknown = sorted(wanted.keys() - weights), sorted(weights.keys() - wanted)
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if name in weights and weights[name].shape != wanted[name].shape
    ]
    found = [
        f"{what} {', '.join(names[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''}"
        for what, names in (("lacks", lacking), ("unknown", unknown), ("shape of", shapes))
        if names
    ]
    return (
        f"these are weights of another network: {'; '.join(found) or error}. Mend the teacher's "
        "parameters, or name another file"
    )
