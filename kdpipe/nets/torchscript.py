"""A trained network as a TorchScript file (torch.jit.save), of any architecture and project.

Only its logits can be compared: the modules of a compiled program cannot be observed from Python.
Feature methods need the network as an exported program, see `exported`. A program that was traced
keeps the device of tensors that it makes itself, and a frozen one (torch.jit.freeze) that of its
weights, which then also do not count as parameters: save the scripted, unfrozen network.

Source: PyTorch, TorchScript. Stages: ``logits``.
"""

from __future__ import annotations

from pydantic import Field
from torch import nn

from kdpipe.discover import Parameters
from kdpipe.errors import ConfigError, DataError
from kdpipe.nets._foreign import Foreign, model_path, places

TRAINED = True


class Params(Parameters):
    """Parameters of the network."""

    path: str = Field(description="the file that torch.jit.save wrote")
    taps: dict[str, str] = Field({}, description="none: a compiled program has no taps")
    divisor: int | tuple[int, ...] = Field(1, description="patch sides are multiples of it")
    batch: int | None = Field(None, ge=1, description="the only batch size it runs on, if traced")


def build(params: Params, *, in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return the network: ``(B, in_channels, *S)`` -> logits ``(B, out_channels, *S)``."""
    import torch

    _check_taps(params)
    file = model_path("torchscript", params.path)
    try:
        network = torch.jit.load(str(file), map_location="cpu")
    except RuntimeError as error:
        raise DataError(
            f"{file} is no TorchScript file ({str(error).splitlines()[0]}); write it with "
            "torch.jit.save, or take the network 'exported' for a .pt2 file"
        ) from None
    return Foreign(network, out_channels, shape=(params.batch,), needs_values=True)


def stages(params: Params) -> dict[str, str]:
    """Return logical tap name -> place in the built network."""
    _check_taps(params)
    return places({})


def divisor(params: Params) -> int | tuple[int, ...]:
    """Return the number that patch sides are multiples of."""
    return params.divisor


def _check_taps(params: Params) -> None:
    if params.taps:
        raise ConfigError(
            f"network 'torchscript': taps {sorted(params.taps)} cannot be recorded, since the "
            "modules of a TorchScript program take no hooks; write the network with torch.export "
            "and take the network 'exported'"
        )
