"""The forms that a network is exported to, one file a form.

A form's file holds

- ``FILE``: the name of what it writes, a file or a folder, in an export folder;
- ``write(trained, description, path, windows)``: write the network, in float32 and evaluation
  mode on the CPU, with its description to `path`. The spatial size is that of the description's
  patch, the batch size any. `windows` are images ``(C, *patch)`` float32 of training cases, for
  forms that look at values;
- ``read(path, device)``: return the network, which maps windows ``(B, C, *patch)`` to logits
  ``(B, K, *patch)`` on `device`, and its description.

Both raise `ConfigError` where a package is missing or the network cannot have the form, and `read`
raises `DataError` for a file that is damaged or another program's.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from kdpipe.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import torch

    from kdpipe.infer.description import Description
    from kdpipe.infer.model import TrainedModel
    from kdpipe.infer.window import Network

FORMS = ("onnx", "int8", "torchscript", "program", "bundle")


class Form(Protocol):
    """What the file of a form holds."""

    FILE: str

    def write(
        self,
        trained: TrainedModel,
        description: Description,
        path: Path,
        windows: Sequence[np.ndarray],
    ) -> None:
        """Write the network."""

    def read(self, path: Path, device: torch.device) -> tuple[Network, Description]:
        """Read what `write` wrote."""


def load_form(name: str) -> Form:
    """Import a form's file; the packages that it needs are imported when it is used.

    Raises:
        ConfigError: there is no such form.
    """
    if name not in FORMS:
        raise ConfigError(f"unknown form {name!r} of export: {did_you_mean(name, FORMS)}")
    return cast(Form, importlib.import_module(f"kdpipe.ship.forms.{name}"))
