"""ONNX whose convolutions work in 8 bits: smaller, but not the same values.

Ranges of activations come from windows of training cases (static quantisation, QDQ, weights by
channel). Some layers stay in float32:

- the first and the last convolutions: they have few weights, and rounding the image, or the logits,
  is what no later layer can average away (1.2 to 1.9 times as many labels would change);
- depth-wise convolutions, and others with few channels a group: slower in 8 bits than in float;
- transposed ones, norms and activations: onnxruntime has no 8-bit kernels for them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdpipe.errors import ConfigError
from kdpipe.infer.description import KEY, Description
from kdpipe.infer.model import TrainedModel
from kdpipe.infer.window import Network
from kdpipe.ship.forms._common import conversion, no_packages
from kdpipe.ship.forms._sessions import read_session
from kdpipe.ship.forms.onnx import convert

FILE = "model.int8.onnx"
_QUANTISED = ("Conv", "Gemm", "MatMul")
_THIN = 8
"""Input channels a group below which a convolution stays in float."""
_WEIGHTED = (*_QUANTISED, "ConvTranspose")


def write(
    trained: TrainedModel, description: Description, path: Path, windows: Sequence[np.ndarray]
) -> None:
    """Write the network as ONNX in 8 bits; see `kdpipe.ship.forms`.

    Raises:
        ConfigError: onnx, onnxscript or onnxruntime is not installed, the network cannot be
            converted, or there are no windows to calibrate with.
    """
    try:
        import onnx
        from onnxruntime import quantization
    except ImportError:
        raise no_packages("int8") from None
    if not windows:
        raise ConfigError(
            "the form 'int8' is calibrated on training cases, of which there are none: give the "
            "study's split, or leave the form out of --forms"
        )
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        full = Path(folder, "float.onnx")
        convert(trained, description, full, "int8")
        with conversion("int8", description):
            quantization.quantize_static(
                full,
                path,
                _reader(windows),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(_QUANTISED),
                nodes_to_exclude=_kept(onnx.load(full).graph),
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
            )
            model = onnx.load(path)
            onnx.helper.set_model_props(model, {KEY: description.to_json()})
            onnx.save(model, path)


def read(path: Path, device: torch.device) -> tuple[Network, Description]:
    """Return the network, run by onnxruntime, and its description; see `kdpipe.ship.forms`."""
    return read_session(path, device, "int8")


def _reader(windows: Sequence[np.ndarray]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Windows(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest: Iterator[np.ndarray] = iter(windows)

        def get_next(self) -> dict[str, np.ndarray] | None:
            window = next(self.rest, None)
            return None if window is None else {"image": window[None]}

    return Windows()


def _kept(graph: Any) -> list[str]:
    """Return the names of the layers that stay in float.

    They are those with weights before or after which there is no other, and thin convolutions.
    """
    nodes = list(graph.node)
    first = _unreached(nodes, lambda node: (node.input, node.output))
    last = _unreached(nodes[::-1], lambda node: (node.output, node.input))
    channels = {weight.name: weight.dims[1] for weight in graph.initializer if len(weight.dims) > 2}
    thin = (
        node.name
        for node in nodes
        if node.op_type == "Conv" and channels.get(node.input[1], _THIN) < _THIN
    )
    return sorted({*first, *last, *thin})


def _unreached(nodes: Iterable[Any], sides: Any) -> Iterator[str]:
    """Walk through sorted nodes and yield the layers with weights that lie behind no other."""
    behind: set[str] = set()
    for node in nodes:
        near, far = sides(node)
        reached = any(name in behind for name in near)
        if node.op_type in _WEIGHTED and not reached:
            yield node.name
        if node.op_type in _WEIGHTED or reached:
            behind.update(far)
