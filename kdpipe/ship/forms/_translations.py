"""How some operations of torch are written in ONNX, so that onnxruntime gives torch's values.

- Adaptive average pooling is not in ONNX. The grid is fixed, so its windows are known.
- Means over whole volumes, and norms that need them: onnxruntime adds up a channel's voxels one
  after the other in float32, which at 96³ voxels costs four digits (9e-5 of a normalised value, in
  each layer; torch: 7e-7). Axis by axis the sums are short. It takes the time of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return torch operation -> what writes it, for ``torch.onnx.export``."""
    operations = torch.ops.aten
    return {
        operations._adaptive_avg_pool2d.default: _adaptive_average,
        operations._adaptive_avg_pool3d.default: _adaptive_average,
        operations.mean.dim: _mean,
        operations.instance_norm.default: _instance_norm,
        operations.group_norm.default: _group_norm,
    }


def averages(length: int, bins: int) -> np.ndarray:
    """Return the matrix ``(length, bins)`` float32 that averages as torch's adaptive pooling does.

    Bin i takes the voxels from ``floor(i * length / bins)`` to before
    ``ceil((i + 1) * length / bins)``; neighbours may share some.
    """
    matrix = np.zeros((length, bins), np.float32)
    for index in range(bins):
        first, end = index * length // bins, -(-(index + 1) * length // bins)
        matrix[first:end, index] = 1 / (end - first)
    return matrix


def _op() -> Any:
    from onnxscript import opset18

    return opset18


def _constant(values: Any) -> Any:
    import onnx_ir

    return _op().Constant(value=onnx_ir.tensor(np.asarray(values)))


def _adaptive_average(feature: Any, output_size: Sequence[int]) -> Any:
    """Pool ``(B, C, *s)`` to ``(B, C, *output_size)``."""
    op = _op()
    sides = [int(side) for side in feature.shape[2:]]
    last = 1 + len(sides)
    feature = _means(feature, [axis for axis, bins in enumerate(output_size, 2) if bins == 1])
    windows = [
        1 if bins == 1 else side // bins if side % bins == 0 else 0
        for side, bins in zip(sides, output_size, strict=True)
    ]
    if all(windows):
        return op.AveragePool(feature, kernel_shape=windows, strides=windows)
    for axis, (side, bins) in enumerate(zip(sides, output_size, strict=True), 2):
        if bins == 1:
            continue
        order = list(range(last + 1))
        order[axis], order[last] = last, axis
        pooled = op.MatMul(op.Transpose(feature, perm=order), _constant(averages(side, bins)))
        feature = op.Transpose(pooled, perm=order)
    return feature


def _mean(feature: Any, dim: Sequence[int] | None, keepdim: bool = False, **given: Any) -> Any:
    rank = len(feature.shape)
    axes = sorted({axis % rank for axis in (dim or range(rank))})
    found = _means(feature, axes)
    return found if keepdim else _op().Squeeze(found, _integers(axes))


def _means(feature: Any, axes: Sequence[int]) -> Any:
    """Average over axes, the innermost first; each stays, with one voxel."""
    for axis in sorted(axes, reverse=True):
        feature = _op().ReduceMean(feature, _integers([axis]), keepdims=1)
    return feature


def _instance_norm(
    feature: Any,
    weight: Any = None,
    bias: Any = None,
    running_mean: Any = None,
    running_var: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = False,
) -> Any:
    """Normalise each channel of ``(B, C, *s)``."""
    if not use_input_stats:
        ones, zeros = (_constant(np.full(feature.shape[1], value, np.float32)) for value in (1, 0))
        scale, shift = ones if weight is None else weight, zeros if bias is None else bias
        return _op().BatchNormalization(
            feature, scale, shift, running_mean, running_var, epsilon=eps
        )
    dims = len(feature.shape) - 2
    return _scaled(_normalised(feature, range(2, 2 + dims), eps), weight, bias, dims)


def _group_norm(
    feature: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    """Normalise the channels of each group of ``(B, C, *s)`` together."""
    op = _op()
    channels, *sides = (int(side) for side in feature.shape[1:])
    apart = op.Reshape(feature, _integers([0, num_groups, channels // num_groups, *sides]))
    normalised = _normalised(apart, range(2, 3 + len(sides)), eps)
    joined = op.Reshape(normalised, _integers([0, channels, *sides]))
    return _scaled(joined, weight, bias, len(sides))


def _normalised(feature: Any, axes: Sequence[int], eps: float) -> Any:
    op = _op()
    centred = op.Sub(feature, _means(feature, axes))
    variance = _means(op.Mul(centred, centred), axes)
    return op.Div(centred, op.Sqrt(op.Add(variance, _constant(np.float32(eps)))))


def _scaled(feature: Any, weight: Any, bias: Any, dims: int) -> Any:
    """Multiply the channels of ``(B, C, *s)`` by `weight` and add `bias`, where there are any."""
    op = _op()
    for values, apply in ((weight, op.Mul), (bias, op.Add)):
        if values is not None:
            feature = apply(feature, op.Reshape(values, _integers([-1, *[1] * dims])))
    return feature


def _integers(values: Sequence[int]) -> Any:
    return _constant(np.array(values, np.int64))
