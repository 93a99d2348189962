"""The stored voxels of a NIfTI file, read strictly: a short or damaged file is an error."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

_GZIP_MAGIC = b"\x1f\x8b"
# NIfTI `datatype` codes of real scalars; others are only measured, by their bits.
_DTYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8",
    1280: "u8",
}  # fmt: skip


def stored_voxels(path: Path) -> np.ndarray:
    """Voxels of a NIfTI-1 or NIfTI-2 file as they are stored: unscaled, flat, shape `(n,)`.

    A packed file is read to its end, so that its checksum is verified.

    Raises:
        EOFError: the file holds less than its header promises.
        OSError, zlib.error: it is packed and damaged, or cannot be opened.
        ValueError, struct.error: its header is not that of a NIfTI file.
    """
    with path.open("rb") as raw:
        packed = raw.read(2) == _GZIP_MAGIC
    with gzip.open(path) if packed else path.open("rb") as stream:
        content = stream.read()
    offset, count, dtype = _layout(content)
    needed = offset + count * dtype.itemsize
    if len(content) < needed:
        raise EOFError(f"{len(content)} bytes of {needed} are there")
    return np.frombuffer(content, dtype, count, offset)


def _layout(content: bytes) -> tuple[int, int, np.dtype]:
    """Offset of the voxels, their number and their type (fields as in nifti1.h, nifti2.h)."""
    for order in "<>":
        (header_size,) = struct.unpack_from(f"{order}i", content)
        if header_size == 348:
            dim = struct.unpack_from(f"{order}8h", content, 40)
            datatype, bits = struct.unpack_from(f"{order}2h", content, 70)
            (offset,) = struct.unpack_from(f"{order}f", content, 108)
        elif header_size == 540:
            datatype, bits = struct.unpack_from(f"{order}2h", content, 12)
            dim = struct.unpack_from(f"{order}8q", content, 16)
            (offset,) = struct.unpack_from(f"{order}q", content, 168)
        else:
            continue
        if not 1 <= dim[0] <= 7 or min(dim[1 : 1 + dim[0]]) < 1 or bits < 8:
            raise ValueError(f"its header has sizes {dim} and {bits} bits a voxel")
        count = int(np.prod(dim[1 : 1 + dim[0]], dtype=np.int64))
        kind = f"{order}{_DTYPES[datatype]}" if datatype in _DTYPES else f"V{bits // 8}"
        return int(offset), count, np.dtype(kind)
    raise ValueError("it does not start with a NIfTI header")
