"""Where and in which precision a network runs."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16", "fp16"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
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


def autocast(
    device: torch.device, dtype: torch.dtype | None
) -> contextlib.AbstractContextManager[object]:
    """Return the autocast context for `dtype`; None: a context that does nothing."""
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


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
    Does nothing where the C library is not glibc.
    """
    libc = _glibc()
    if libc is None:
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
