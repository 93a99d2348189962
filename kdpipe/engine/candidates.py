"""Where a network's features can be tapped: every module whose output is a feature map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor, nn

from kdpipe import discover
from kdpipe.config import Entry
from kdpipe.engine.taps import TapRecorder
from kdpipe.errors import ConfigError
from kdpipe.nets.base import build_network, check_patch, dry_forward, network_stages
from kdpipe.schema import explain
from kdpipe.yaml_files import load_yaml


@dataclass(frozen=True)
class Candidate:
    """A module's output: channels, sides (voxels) and input voxels per feature voxel by axis."""

    path: str
    channels: int
    sides: tuple[int, ...]
    stride: tuple[float, ...]


def candidates(network: nn.Module, input_shape: Sequence[int]) -> list[Candidate]:
    """Return the modules of `network` that give a feature map, in the order of a forward pass.

    Args:
        network: the built network.
        input_shape: ``(B, C, *S)``, of a patch that fits it.
    """
    found: dict[str, Candidate] = {}

    def record(path: str, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == len(input_shape):
            sides = tuple(output.shape[2:])
            stride = tuple(n / side for n, side in zip(input_shape[2:], sides, strict=True))
            found.setdefault(path, Candidate(path, output.shape[1], sides, stride))

    handles = [
        module.register_forward_hook(lambda _, __, output, path=path: record(path, output))
        for path, module in network.named_modules()
        if path and not isinstance(module, torch.jit.ScriptModule)  # it takes no hooks
    ]
    try:
        dry_forward(network, input_shape)
    finally:
        for handle in handles:
            handle.remove()
    return list(found.values())


def describe_candidates(entry: str, patch: Sequence[int], channels: int, classes: int) -> str:
    """Return the places of a network as a table, with the names of its declared stages.

    Module paths are as `taps` of a network that is trained already takes them.

    Args:
        entry: the network as in a configuration, YAML.
        patch: 2 or 3 sides, voxels.
        channels: of the image.
        classes: channels of the logits.

    Raises:
        ConfigError: the entry is no network, or the patch does not fit it.
    """
    try:
        spec = Entry.model_validate(load_yaml(entry))
    except (ValidationError, yaml.YAMLError) as error:
        reason = explain(error, Entry) if isinstance(error, ValidationError) else error
        raise ConfigError(f"{entry!r} is no network of a configuration: {reason}") from None
    name, params = spec.name, spec.params
    check_patch(name, params, patch)
    network = build_network(name, params, channels, classes, len(patch))
    stages = network_stages(name, params)
    shape = (1, channels, *patch)
    with TapRecorder(network, stages):  # a stage that is not there is an error here
        found = candidates(network, shape)
    prefix = _prefix(name, params) if found else ""
    named: dict[str, list[str]] = {}
    for stage, path in stages.items():
        named.setdefault(path.partition(":")[0], []).append(stage + _note(path))
    rows = [("module path", "channels", "sides", "stride", "stage")]
    for place in (place for place in found if place.path.startswith(prefix)):
        sides, stride = (
            "x".join(f"{n:g}" for n in values) for values in (place.sides, place.stride)
        )
        stage = ", ".join(named.get(place.path, ()))
        rows.append((place.path.removeprefix(prefix), str(place.channels), sides, stride, stage))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    if len(found) == 0:
        lines.append("none: the modules of this network cannot be observed")
    return "\n".join(lines)


def _prefix(name: str, params: Mapping[str, Any]) -> str:
    """What a network puts before the module paths in its parameter `taps`, where it has that."""
    if "taps" not in discover.check_params("nets", name, params):
        return ""
    return network_stages(name, {**params, "taps": {"tap": "module"}})["tap"].removesuffix("module")


def _note(place: str) -> str:
    kind = place.partition(":")[2]
    return f" ({kind})" if kind else ""
