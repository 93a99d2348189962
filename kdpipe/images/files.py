"""Image files: which names they have, and what SimpleITK passes over in silence.

Its reader of NIfTI fills a truncated file with zeros, and turns NaN and infinite voxels into zeros,
so that a broken label map looks like a missed organ; voxels without a size become 1 mm wide. So the
bytes are read here once before, to the end, which also makes gzip check its checksum. Those of JPEG
and BMP fill truncated files too.
Its writer of NIfTI does not notice that the disk is full.
"""

from __future__ import annotations

import errno
import gzip
import math
import os
import re
import struct
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import SimpleITK as sitk

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", *PICTURES)
SCAN_SUFFIXES = (*SUFFIXES, ".mhd", ".nhdr", ".hdr")
"""With headers whose voxels lie in a file beside them, which a data set may not have: its digests
are of the files that it names."""
_CHUNK = 1 << 20
_FLOATS = {16: "f4", 64: "f8"}
# header length -> struct format and offset of: dim, datatype, bits a voxel, first byte of voxels,
# and sizes of a voxel
_LAYOUTS = {
    348: (("8h", 40), ("h", 70), ("h", 72), ("f", 108), ("8f", 76)),
    540: (("8q", 16), ("h", 12), ("h", 14), ("q", 168), ("8d", 104)),
}


class _Header(NamedTuple):
    """Length of the voxels, their numpy type if it can hold NaN, and their first byte."""

    n_bytes: int
    float_type: str | None
    first: int


def case_name(file: Path, suffixes: Sequence[str] = SUFFIXES) -> str | None:
    """File name without its image suffix; None if it is no image or a hidden (temporary) file."""
    suffix = next((s for s in suffixes if file.name.endswith(s)), None)
    if suffix is None or file.name.startswith("."):
        return None
    return file.name.removesuffix(suffix)


def is_nifti(file: Path) -> bool:
    """Say whether the file's name is that of a NIfTI file."""
    return file.name.endswith((".nii", ".nii.gz"))


def is_nifti_pair(file: Path) -> bool:
    """Say whether the file's name is that of a header whose voxels are in an ``.img`` file."""
    return file.name.endswith(".hdr")


def read_image(file: Path) -> sitk.Image:
    """Read an image as it is; the pixels of a picture are 1 apart.

    The dots per inch of a JPEG or TIFF file say how to print it. Taken for a spacing they would set
    a photograph and its PNG label map on different grids.

    Raises:
        EOFError: for a truncated JPEG or BMP file.
        RuntimeError: if SimpleITK cannot read it.
    """
    import SimpleITK as sitk

    _check_end(file)
    image = sitk.ReadImage(str(file))
    if file.name.endswith(PICTURES):
        image.SetSpacing((1.0,) * image.GetDimension())
    return image


def write_nifti(image: sitk.Image, file: Path) -> None:
    """Write a NIfTI file, compressed, and make sure that all of it is there.

    Raises:
        OSError: it is not; as far as one can tell the disk is full.
    """
    import SimpleITK as sitk

    sitk.WriteImage(image, str(file), True)
    try:
        count_non_finite(file)
    except (EOFError, OSError, zlib.error, ValueError):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file)) from None


def write_image(image: sitk.Image, file: Path) -> None:
    """Write an image, compressed, in the format that its suffix names, and check that all is there.

    Raises:
        OSError: it is not; as far as one can tell the disk is full.
    """
    if is_nifti(file):
        write_nifti(image, file)
        return
    import SimpleITK as sitk

    sitk.WriteImage(image, str(file), True)
    try:
        sitk.ReadImage(str(file))
    except RuntimeError:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file)) from None


def itk_reason(error: Exception) -> str:
    """Return the line of SimpleITK's message that says what is wrong, without addresses."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    chosen = next((line for line in lines if line.startswith("ITK ERROR: ")), lines[-1])
    return re.sub(r"^(ITK ERROR: )?(\w+\(0x[0-9a-f]+\): )?", "", chosen)


def _check_end(file: Path) -> None:
    if file.name.endswith((".jpg", ".jpeg")):
        content = file.read_bytes()
        if content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda"):  # end of image, start of scan
            raise EOFError("the JPEG data stop before the end of the image")
    elif file.name.endswith(".bmp"):
        content = file.read_bytes()
        promised = int.from_bytes(content[2:6], "little")
        if len(content) < promised:
            raise EOFError(f"{len(content)} bytes, the header promises {promised}")


def count_non_finite(file: Path) -> int:
    """Read a NIfTI-1 or -2 file to its end and count the NaN and infinite voxels as stored.

    Of a pair of files, and of Analyze's, `file` is the header.

    Raises:
        EOFError: if the file is shorter than its header promises.
        OSError, zlib.error: if gzip finds it damaged.
        ValueError: if it is no NIfTI file, or its voxels have no size.
    """
    open_file: Any = gzip.open if file.suffix == ".gz" else open
    with ExitStack() as opened:
        stream = opened.enter_context(open_file(file, "rb"))
        header = _read_header(stream)
        if is_nifti_pair(file):
            stream = opened.enter_context(file.with_suffix(".img").open("rb"))
        stream.read(max(0, header.first - stream.tell()))
        length, wrong = 0, 0
        while chunk := stream.read(_CHUNK):  # whole voxels, but perhaps at the end of the file
            length += len(chunk)
            if header.float_type:
                wrong += _non_finite(chunk, header.float_type)
    if length < header.n_bytes:
        raise EOFError(f"{length} bytes of voxels, the header promises {header.n_bytes}")
    return wrong


def _read_header(stream: IO[bytes]) -> _Header:
    start = stream.read(4)
    for order in "<>":
        length = struct.unpack(f"{order}i", start)[0] if len(start) == 4 else 0
        if length in _LAYOUTS:
            break
    else:
        raise ValueError("no NIfTI header")
    raw = start + stream.read(length - 4)
    if len(raw) < length:
        raise EOFError(f"{len(raw)} bytes, the header alone has {length}")
    fields = [struct.unpack_from(order + kind, raw, at) for kind, at in _LAYOUTS[length]]
    (n_axes, *sizes), (datatype,), (bits,), (first,), (_, *spacing) = fields
    _check_spacing(sizes[: max(0, min(n_axes, 3))], spacing)
    voxels = 1
    for size in sizes[: max(0, n_axes)]:
        voxels *= max(0, size)
    kind = _FLOATS.get(datatype)
    return _Header(voxels * bits // 8, kind and order + kind, int(first))


def _check_spacing(sizes: Sequence[int], spacing: Sequence[float]) -> None:
    """Raise ValueError for an axis of several voxels that have no size."""
    pairs = list(zip(sizes, spacing, strict=False))
    if any(size > 1 and (side == 0 or not math.isfinite(side)) for size, side in pairs):
        sides = " x ".join(f"{side:g}" for _, side in pairs)
        raise ValueError(f"a voxel measures {sides} mm by its header")


def _non_finite(content: bytes, float_type: str) -> int:
    values = np.frombuffer(content, float_type, len(content) // np.dtype(float_type).itemsize)
    return int(values.size - np.isfinite(values).sum())
