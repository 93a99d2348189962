"""Shared by the networks that come with trained weights: a wrapper, files and taps."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from kdpipe.errors import ConfigError
from kdpipe.nets.base import COPY, INPUT


class Foreign(nn.Module):
    """A network of another project, frozen, as kdpipe calls it: images -> logits.

    Where the network gives several tensors (deep supervision), the first one is the logits.

    Args:
        network: as loaded.
        out_channels: channels that the logits must have.
        shape: the only input ``(B, C, *S)`` that fits, None where any does. Images are passed in
            parts of B, the last one filled up, which features cannot follow.
        needs_values: whether it cannot run on the meta device, see `nets.base.dry_forward`.
    """

    def __init__(
        self,
        network: nn.Module,
        out_channels: int,
        *,
        shape: Sequence[int | None] = (None,),
        needs_values: bool = False,
    ):
        super().__init__()
        self.network = freeze(network)
        self.out_channels = out_channels
        self.batch, *self.image_shape = shape
        self.needs_values = needs_values
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(B, out_channels, *S)``."""
        fits = [side is None or side == given for side, given in self._sides(image)]
        if not all(fits):
            shape = ["any" if side is None else side for side in self.image_shape]
            raise ConfigError(
                f"the network was exported for images (channels, sides) of {shape}, it is given "
                f"{list(image.shape[1:])}: change the preset's patch, or export it again with "
                "dynamic_shapes"
            )
        if self.batch is None or len(image) == self.batch:
            return self._logits(image)
        return torch.cat([self._filled(part, self.batch) for part in image.split(self.batch)])

    def _sides(self, image: Tensor) -> list[tuple[int | None, int]]:
        return list(zip(self.image_shape, image.shape[1:], strict=bool(self.image_shape)))

    def _filled(self, part: Tensor, batch: int) -> Tensor:
        missing = part[-1:].expand(batch - len(part), *part.shape[1:])
        return self._logits(torch.cat([part, missing]))[: len(part)]

    def _logits(self, image: Tensor) -> Tensor:
        output = self.network(image)
        if isinstance(output, tuple | list) and output:
            output = output[0]
        if not isinstance(output, Tensor):
            raise ConfigError(
                f"the network gives a {type(output).__name__}, not logits: export a network whose "
                "forward returns one tensor"
            )
        check_channels("the network", "classes", output.shape[1], self.out_channels)
        return output


def freeze(network: nn.Module) -> nn.Module:
    """Set evaluation mode, and that no weight is trained; return the network."""
    for weight in network.parameters():  # a compiled module has no requires_grad_
        weight.requires_grad_(False)
    return network.eval()


def model_path(kind: str, path: str, *, folder: bool = False) -> Path:
    """Return `path`, ``~`` expanded, or raise ConfigError: there is no such file or folder."""
    found = Path(path).expanduser()
    if not (found.is_dir() if folder else found.is_file()):
        what = "folder" if folder else "file"
        raise ConfigError(f"network {kind!r}: {found} is no {what}; correct its 'path'")
    return found


def check_channels(who: str, what: str, has: int, wanted: int) -> None:
    """Raise ConfigError unless a trained network has the data set's number of `what`."""
    if has != wanted:
        raise ConfigError(
            f"{who} was trained for {has} {what}, the data set has {wanted}: take a network that "
            "was trained for this data set's channels and labels"
        )


def places(taps: Mapping[str, str], prefix: str = "network") -> dict[str, str]:
    """Return stages: the output as `logits`, and the user's taps below the module `prefix`."""
    return {name: f"{prefix}.{place}" for name, place in taps.items()} | {"logits": ""}


def check_taps(who: str, network: nn.Module, taps: Mapping[str, str]) -> None:
    """Raise ConfigError with the nearest module paths where a tap is not in the network."""
    modules = [path for path, _ in network.named_modules() if path]
    for name, place in taps.items():
        path = place.removesuffix(INPUT).removesuffix(COPY)
        if path in modules:
            continue
        near = difflib.get_close_matches(path, modules, n=5, cutoff=0.3) or modules[:5]
        raise ConfigError(
            f"{who}: tap {name!r} is to be at module {path!r}, which the network does not have; "
            f"near: {', '.join(near)}"
        )
