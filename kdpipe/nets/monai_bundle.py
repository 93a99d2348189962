"""A trained network as a MONAI bundle: a folder with configs/ and models/, as in the Model Zoo.

The network is built from the bundle's configuration and loaded with its weights. Building it runs
the ``$`` expressions of the configuration: take bundles from people you trust. The bundle's own
preparation of images is not taken over; the preset must match it (axes are x, y, z in both). A
bundle that ``kdpipe export`` wrote brings the code of its network in ``code``.

Source: MONAI, https://monai.io/model-zoo. A network class that is defined in the bundle's own
``scripts`` is not found; export such a network, see `exported`.

Stages: ``logits``, and those of ``taps``, by module path.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field
from torch import nn

from kdpipe.discover import Parameters
from kdpipe.errors import ConfigError, DataError, did_you_mean
from kdpipe.nets._foreign import Foreign, check_channels, check_taps, model_path, places

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

TRAINED = True
FILES = ("configs/*.json", "configs/*.yaml", "configs/*.yml", "models/**/*.pt", "code/**/*.py")

CONFIGS = tuple(
    f"configs/{name}.{suffix}"
    for name in ("inference", "train")
    for suffix in ("json", "yaml", "yml")
)


class Params(Parameters):
    """Parameters of the network."""

    path: str = Field(description="the bundle's folder")
    network: str = Field("network_def", description="entry of the configuration that builds it")
    weights: str = Field(
        "models/model.pt", pattern=r"^models/.+\.pt$", description="state dict, below the folder"
    )
    taps: dict[str, str] = Field({}, description="stage -> module path, for feature methods")
    divisor: int | tuple[int, ...] = Field(1, description="patch sides are multiples of it")


def build(params: Params, *, in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return the network: ``(B, in_channels, *S)`` -> logits ``(B, out_channels, *S)``."""
    folder = model_path("monai_bundle", params.path, folder=True)
    who = f"network 'monai_bundle' ({folder})"
    parser = _parser(folder)
    network = _network(parser, params.network, who)
    wanted = {"in_channels": in_channels, "out_channels": out_channels}
    for entry, what in (("in_channels", "image channels"), ("out_channels", "classes")):
        has = _argument(parser, params.network, entry)
        if has is not None:
            check_channels(who, what, has, wanted[entry])
    if _argument(parser, params.network, "spatial_dims") not in (None, spatial_dims):
        raise ConfigError(f"{who} is not for {spatial_dims}D: take a preset whose patch suits it")
    check_taps(who, network, params.taps)
    _load(network, folder / params.weights)
    return Foreign(network, out_channels)


def stages(params: Params) -> dict[str, str]:
    """Return logical tap name -> place in the built network."""
    return places(params.taps)


def divisor(params: Params) -> int | tuple[int, ...]:
    """Return the number that patch sides are multiples of."""
    return params.divisor


def _parser(folder: Path) -> ConfigParser:
    from monai.bundle import ConfigParser  # costs seconds

    file = next((folder / name for name in CONFIGS if (folder / name).is_file()), None)
    if file is None:
        raise ConfigError(f"{folder} is no MONAI bundle: it has none of {', '.join(CONFIGS)}")
    parser = ConfigParser()
    try:
        parser.read_config(str(file))
    except ValueError as error:
        raise DataError(f"{file} is not readable ({error}); download the bundle again") from None
    parser["bundle_root"] = str(folder)
    return parser


def _network(parser: ConfigParser, entry: str, who: str) -> nn.Module:
    if entry not in parser:
        raise ConfigError(f"{who} has no entry {entry!r}: {did_you_mean(entry, parser.get())}")
    try:
        network = parser.get_parsed_content(entry)
    except Exception as error:  # whatever the configuration's code raises
        raise ConfigError(
            f"{who}: {entry!r} cannot be built ({error}); install what it imports, or export the "
            "network with torch.export and take the network 'exported'"
        ) from error
    if not isinstance(network, nn.Module):
        kind = type(network).__name__
        raise ConfigError(f"{who}: {entry!r} gives a {kind}, no network; set 'network'")
    return network


def _argument(parser: ConfigParser, entry: str, name: str) -> int | None:
    """Return an argument of the network where the configuration states it as a number."""
    place = f"{entry}#{name}"
    if not isinstance(parser.get(entry), Mapping) or place not in parser:
        return None
    value = parser.get_parsed_content(place)
    return value if isinstance(value, int) else None


def _load(network: nn.Module, file: Path) -> None:
    import torch

    if not file.is_file():
        raise ConfigError(f"{file} is not there; download the bundle's weights, or set 'weights'")
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model", "network"):  # a checkpoint with more than weights
            content = content.get(key, content) if isinstance(content, dict) else content
        network.load_state_dict(content)
    except Exception as error:  # of the archive, its pickle, or its keys
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{file} does not hold the weights of the bundle's network ({reason}); set 'weights' "
            "to the state dict that belongs to it"
        ) from None
