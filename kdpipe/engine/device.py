"""Where and in which precision a network runs."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import platform
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)
Precision = Literal["auto", "fp32", "bf16", "fp16"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def pick_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """Return the autocast type, or None for full precision.

    ``auto`` is bfloat16 on a GPU that has it and full precision elsewhere: on a CPU without
    matrix units for bfloat16 it saves nothing and costs accuracy.
    """
    if precision == "auto":
        helps = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if helps else None
    return _DTYPES.get(precision)


def teacher_dtype(
    teacher: Literal["same", "fp32", "bf16", "fp16"], student: torch.dtype | None
) -> torch.dtype | None:
    """Return the autocast type of the frozen teacher, where the student's is `student`."""
    return student if teacher == "same" else _DTYPES.get(teacher)


def autocast(
    device: torch.device, dtype: torch.dtype | None
) -> contextlib.AbstractContextManager[object]:
    """Return the autocast context for `dtype`; None: a context that does nothing."""
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def channels_innermost(tensor: Tensor) -> Tensor:
    """Return the tensor ``(B, C, *S)`` with the channels of a voxel side by side in memory."""
    return tensor.contiguous(memory_format=_LAYOUTS[tensor.ndim])


def lay_out(network: nn.Module) -> None:
    """Lay the kernels of convolutions out with the channels innermost, in place."""
    for weights in network.parameters():
        if weights.ndim in _LAYOUTS:
            weights.data = channels_innermost(weights.data)


def for_terms(tensor: Tensor, contiguous: bool) -> Tensor:
    """Return a network's tensor as losses want it: in float32, its channels as whole volumes.

    Converted once here, the terms do not each convert it again; a softmax over channels that lie
    innermost takes four times as long.

    Args:
        tensor: ``(B, C, *S)`` in any float type.
        contiguous: False leaves the layout, and float32 tensors altogether, as they are.
    """
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    if contiguous:
        kind = torch.float32 if half else tensor.dtype
        return tensor.to(kind, memory_format=torch.contiguous_format)
    return tensor.float() if half else tensor


def warn_of_slow(dtype: torch.dtype | None, device: torch.device) -> None:
    """Say so where bfloat16 is computed without units for it, which is slower than float32."""
    if dtype is torch.bfloat16 and device.type == "cpu" and not has_bf16_units():
        logger.warning("this processor has no units for bfloat16: fp32 is faster here")


def has_bf16_units() -> bool:
    """Whether the CPU multiplies bfloat16 (AVX512-BF16, AMX or Arm's BF16), as far as is known."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return any(name in flags for name in ("avx512_bf16", "amx_bf16", " bf16"))


def processor() -> str:
    """Return the name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks instead of returning them to the kernel after every layer.

    Large tensors are otherwise mapped and unmapped in each forward pass, and page faults take
    half of the time of a small 3D network on a CPU. Values do not change; memory use grows.
    Does nothing where the C library is not glibc, or where the environment has
    ``KDPIPE_MALLOC=0``.
    """
    libc = _glibc()
    if libc is None or os.environ.get("KDPIPE_MALLOC") == "0":
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_TOP_PAD, 256 * 2**20)


def return_freed_memory() -> None:
    """Let glibc return freed blocks to the kernel, so that resident memory tells what is used."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
