"""ONNX, which onnxruntime and many other programs run: ``image`` -> ``logits``, any batch size.

The description is in the file's ``metadata_props``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdpipe.infer.description import KEY, Description
from kdpipe.infer.model import TrainedModel
from kdpipe.infer.window import Network
from kdpipe.ship.forms._common import conversion, example, no_packages
from kdpipe.ship.forms._sessions import read_session
from kdpipe.ship.forms._translations import translations

FILE = "model.onnx"


def write(
    trained: TrainedModel, description: Description, path: Path, windows: Sequence[np.ndarray]
) -> None:
    """Write the network as ONNX; see `kdpipe.ship.forms`."""
    convert(trained, description, path, "onnx")


def convert(trained: TrainedModel, description: Description, path: Path, form: str) -> None:
    """Write the network as ONNX in float32, on behalf of a form.

    Raises:
        ConfigError: onnx or onnxscript is not installed, or the network cannot be converted.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  torch needs it and says so less clearly
    except ImportError:
        raise no_packages(form) from None
    with conversion(form, description):
        program = torch.onnx.export(
            trained.network,
            (example(description),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["image"],
            output_names=["logits"],
            custom_translation_table=translations(),
            verbose=False,
        )
        assert program is not None
        model = program.model_proto
        _forget_sources(model.graph)
        onnx.helper.set_model_props(model, {KEY: description.to_json()})
        onnx.save(model, path)


def read(path: Path, device: torch.device) -> tuple[Network, Description]:
    """Return the network, run by onnxruntime, and its description; see `kdpipe.ship.forms`."""
    return read_session(path, device, "onnx")


def _forget_sources(graph: Any) -> None:
    """Remove what the converter notes of each operation: source files by their folders here.

    Shapes in between go too, whoever needs them infers them. The batch gets its name.
    """
    del graph.metadata_props[:], graph.value_info[:]
    for part in chain(graph.node, graph.initializer, graph.input, graph.output):
        del part.metadata_props[:]
    for value in chain(graph.input, graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
