"""Take over a teacher that is trained already: build it, validate it, write its ``model.pt``."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdpipe.data.targets import Targets
from kdpipe.engine.device import compute_dtype, pick_device
from kdpipe.engine.jobs import Job, write_results
from kdpipe.engine.validate import Validator
from kdpipe.errors import DataError
from kdpipe.nets.base import build_network, check_patch

log = logging.getLogger(__name__)
_SHOWN = 3  # names of weights in a message


def adopt(job: Job) -> None:
    """Write the three files of a training for a network that needs none.

    Raises:
        ConfigError: the network cannot be built, or the patch does not fit it.
        DataError: its files are damaged or belong to another network.
    """
    spec, patch = job.run["network"], tuple(job.run["patch"])
    check_patch(spec["name"], spec["params"], patch)
    network = build_network(
        spec["name"], spec["params"], spec["in_channels"], spec["out_channels"], len(patch)
    )
    if "weights" in spec:
        load_weights(network, Path(spec["weights"]).expanduser())
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
    rows = [{"epoch": 0, "step": 0, "seconds": 0.0, "validation_dice": dice}]
    write_results(job, network.state_dict(), rows, best_epoch=0, dice=dice)


def load_weights(network: nn.Module, file: Path) -> None:
    """Load a checkpoint into a network of the catalogue.

    Understood are a state dict, one inside ``state_dict``, ``model``, ``network_weights`` or
    ``weights`` (kdpipe's own ``model.pt``), and names that begin with ``module.``.

    Raises:
        DataError: the file is unreadable, holds no weights, or those of another network.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(
            f"{file}: not readable as weights ({str(error).splitlines()[0]}); save the network's "
            "state_dict() with torch.save"
        ) from None
    weights = _state_dict(content)
    if weights is None:
        raise DataError(f"{file}: holds no weights; save the network's state_dict()")
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(f"{file}: {_difference(network, weights, error)}") from None


def _state_dict(content: Any) -> dict[str, Tensor] | None:
    if not isinstance(content, Mapping):
        return None
    for key in ("state_dict", "model", "network_weights", "weights"):
        if isinstance(content.get(key), Mapping):
            return _state_dict(content[key])
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
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
