"""What a network is: a file that builds it, names its stages and states which patches fit.

A network file ``kdpipe/nets/<name>.py`` holds

- ``class Params(Parameters)``: its own parameters;
- ``build(params, *, in_channels, out_channels, spatial_dims)``: the `nn.Module`, which maps
  images ``(B, in_channels, *S)`` to logits ``(B, out_channels, *S)``;
- ``stages(params)``: logical tap name -> where the tensor is found in the built network;
- ``divisor(params)``: each patch side must be a multiple of it (an int, or one a side).

and, where they apply, these literals and functions:

- ``DIMS = (2,)``: the spatial dimensions that it can be built for; (2, 3) if not stated;
- ``fixed_patch(params)``: the only patch that fits, as a tuple of sides;
- ``TRAINED = True``: it comes with trained weights from `params.path`, a file or a folder, in
  which ``FILES`` (globs below a folder) decide what it is. ``build`` loads them; it is a teacher.

Logical names, where a network has the stage:

=============== ==================================================================================
``enc1..encN``  encoder stage outputs, finest first
``bottleneck``  output of the coarsest stage
``dec1..decM``  decoder stage outputs, **coarsest first**; the last may be the logits themselves
``penult``      input of the last up stage (or of the head, where that follows an up stage)
``pre_act``     finest decoder features below the head, before their normalisation and activation
``corrected``   output of the finest decoder's residual block, x + f(x)
``correction``  the residual branch f(x) of that block
``logits``      the network's output
=============== ==================================================================================

Where is a module path: ``"model.2"`` is the module's output, ``"model.2:input"`` its input, and
``"conv2:copy"`` a copy of its output, for a tensor that the network overwrites afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from kdpipe import discover
from kdpipe.errors import ConfigError

INPUT = ":input"
COPY = ":copy"


def build_network(
    name: str,
    params: Mapping[str, Any],
    in_channels: int,
    out_channels: int,
    spatial_dims: int = 3,
) -> nn.Module:
    """Build a network by its name; its random start is drawn from torch's global generator.

    Args:
        name: file name in ``kdpipe/nets``.
        params: the network's own parameters; what is left out has its default.
        in_channels: channels of the image.
        out_channels: classes, background included (or regions, if they overlap).
        spatial_dims: 2 or 3.

    Raises:
        ConfigError: unknown name, unknown parameter, parameters that do not go together, or a
            network that is not for `spatial_dims`.
    """
    module, parsed = _entry(name, params)
    discover.check_dims(name, spatial_dims)
    network: nn.Module = module.build(
        parsed, in_channels=in_channels, out_channels=out_channels, spatial_dims=spatial_dims
    )
    return network


def network_of(run: Mapping[str, Any]) -> nn.Module:
    """Build the network of a cell, from the `network` and the `patch` of its ``run.json``."""
    spec = run["network"]
    return build_network(
        spec["name"],
        spec["params"],
        spec["in_channels"],
        spec["out_channels"],
        len(run["patch"]),
    )


def network_stages(name: str, params: Mapping[str, Any]) -> dict[str, str]:
    """Return logical tap name -> place, for the network built with `params`."""
    module, parsed = _entry(name, params)
    return dict(module.stages(parsed))


def check_patch(name: str, params: Mapping[str, Any], patch: Sequence[int]) -> None:
    """Check that a patch of ``len(patch)`` sides, in voxels, fits the network.

    Raises:
        ConfigError: a side is no multiple of the network's divisor, or the coarsest grid would be
            a single voxel, of which a normalisation layer has no statistics.
    """
    module, parsed = _entry(name, params)
    discover.check_dims(name, len(patch))
    if hasattr(module, "fixed_patch"):
        _check_fixed(name, module.fixed_patch(parsed), patch)
        return
    given = module.divisor(parsed)
    divisors = (given,) * len(patch) if isinstance(given, int) else tuple(given)
    if len(divisors) != len(patch):
        raise ConfigError(
            f"network {name!r} is for {len(divisors)} axes, the patch {tuple(patch)} has "
            f"{len(patch)}: give one side an axis"
        )
    fitting = tuple(
        max(1, math.ceil(side / divisor)) * divisor
        for side, divisor in zip(patch, divisors, strict=True)
    )
    if fitting != tuple(patch):
        raise ConfigError(
            f"network {name!r} needs patch sides that are multiples of {divisors}, the patch is "
            f"{tuple(patch)}: take {fitting}"
        )
    if fitting == divisors:
        raise ConfigError(
            f"network {name!r} reduces the patch {fitting} to a single voxel, which cannot be "
            f"normalised: take a longer side, for example {(2 * fitting[0], *fitting[1:])}"
        )


def _check_fixed(name: str, fixed: Sequence[int], patch: Sequence[int]) -> None:
    if tuple(fixed) != tuple(patch):
        raise ConfigError(
            f"network {name!r} is built for patches of {tuple(fixed)}, the preset's patch is "
            f"{tuple(patch)}: make them equal"
        )


def initialise(network: nn.Module, scheme: str) -> None:
    """Set the start weights in place.

    ``kaiming`` is the start of the ACF-BCKD code: convolutions normal with variance 2 / fan_out,
    biases 0, norm weights 1. As there, fan_out is torch's, which for a transposed convolution
    counts the *input* channels. ``default`` leaves what the layers' own constructors drew.

    Raises:
        ConfigError: unknown scheme.
    """
    if scheme == "default":
        return
    if scheme != "kaiming":
        raise ConfigError(f"init {scheme!r} is unknown. Valid: default, kaiming")
    norms = nn.GroupNorm | nn.LayerNorm | nn.modules.batchnorm._NormBase
    for layer in network.modules():
        if isinstance(layer, nn.modules.conv._ConvNd):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, norms):
            if layer.weight is not None:
                nn.init.ones_(layer.weight)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def dry_forward(network: nn.Module, input_shape: Sequence[int]) -> Tensor:
    """Run one forward pass on shapes alone and return the output, a tensor without data.

    The pass runs in evaluation mode on torch's ``meta`` device: it takes no memory, changes
    neither weights, buffers, random state nor any module's mode, and fires forward hooks.

    A network with an attribute `needs_values` (a compiled program, which is bound to its device)
    is run on zeros instead.

    Args:
        network: on any device; unless it `needs_values`, its forward must neither read values nor
            fix a device.
        input_shape: ``(B, C, *S)``.
    """
    if getattr(network, "needs_values", False):
        device = next((value.device for value in network.parameters()), None)
        zeros: Tensor = network(torch.zeros(tuple(input_shape), device=device))
        return zeros
    shapes = {name: torch.empty_like(value, device="meta") for name, value in _own(network)}
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    dtype = next((value.dtype for value in network.parameters()), torch.float32)
    try:
        image = torch.empty(tuple(input_shape), dtype=dtype, device="meta")
        output: Tensor = torch.func.functional_call(network, shapes, (image,), tie_weights=False)
    finally:
        for module, training in modes:
            module.training = training
    return output


def _own(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name; each module's once, even if it is registered twice.

    Such a module would else be given its stand-ins twice, and keep the first ones.
    """
    for path, module in network.named_modules():
        for tensors in (module.named_parameters, module.named_buffers):
            yield from tensors(prefix=path, recurse=False, remove_duplicate=False)


def _entry(name: str, params: Mapping[str, Any]) -> tuple[ModuleType, discover.Parameters]:
    complete = discover.check_params("nets", name, params)
    module = discover.load("nets", name)
    return module, module.Params(**complete)
