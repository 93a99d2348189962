"""The strict reader of NIfTI voxels, on headers made by hand and files made by SimpleITK."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from kdpipe.metrics.nifti import stored_voxels

VALUES = np.arange(24)


def _nifti1(order: str, kind: str, code: int, dim: tuple[int, ...] = (3, 2, 3, 4)) -> bytes:
    header = bytearray(352)
    struct.pack_into(f"{order}i", header, 0, 348)
    struct.pack_into(f"{order}{len(dim)}h", header, 40, *dim)
    struct.pack_into(f"{order}2h", header, 70, code, 8 * int(kind[1:]))
    struct.pack_into(f"{order}f", header, 108, 352.0)
    return bytes(header) + VALUES.astype(order + kind).tobytes()


def _nifti2(order: str, kind: str, code: int) -> bytes:
    header = bytearray(544)
    struct.pack_into(f"{order}i", header, 0, 540)
    struct.pack_into(f"{order}2h", header, 12, code, 8 * int(kind[1:]))
    struct.pack_into(f"{order}4q", header, 16, 3, 2, 3, 4)
    struct.pack_into(f"{order}q", header, 168, 544)
    return bytes(header) + VALUES.astype(order + kind).tobytes()


@pytest.mark.parametrize("make", [_nifti1, _nifti2])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "code"), [("u1", 2), ("i2", 4), ("f4", 16), ("f8", 64)])
def test_versions_byte_orders_and_types(tmp_path: Path, make, order, kind, code) -> None:
    content = make(order, kind, code)
    for name, data in (("x.nii", content), ("x.nii.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(data)
        assert stored_voxels(tmp_path / name).tolist() == VALUES.tolist()
        (tmp_path / name).write_bytes(gzip.compress(content[:-1]))
        with pytest.raises(EOFError, match=f"{len(content) - 1} bytes of {len(content)} are"):
            stored_voxels(tmp_path / name)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64])
def test_reads_what_simpleitk_writes(tmp_path: Path, suffix: str, dtype: type) -> None:
    path = tmp_path / f"x{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(VALUES.reshape(2, 3, 4).astype(dtype)), str(path))
    assert stored_voxels(path).tolist() == VALUES.tolist()
    assert stored_voxels(path).dtype == dtype


def test_other_types_are_only_measured(tmp_path: Path) -> None:
    path = tmp_path / "rgb.nii"
    content = _nifti1("<", "u8", 128)  # RGB is 3 bytes a voxel; here any code without an entry
    path.write_bytes(content)
    assert stored_voxels(path).dtype.kind == "V"
    path.write_bytes(content[:-1])
    with pytest.raises(EOFError):
        stored_voxels(path)


@pytest.mark.parametrize("dim", [(0, 2, 3, 4), (9, 2, 3, 4), (3, 2, 0, 4), (3, 2, -3, 4)])
def test_impossible_sizes_are_refused(tmp_path: Path, dim: tuple[int, ...]) -> None:
    (tmp_path / "x.nii").write_bytes(_nifti1("<", "u1", 2, dim))
    with pytest.raises(ValueError, match="its header has sizes"):
        stored_voxels(tmp_path / "x.nii")


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.nii").write_text("<html>please log in</html>")
    with pytest.raises(ValueError, match="does not start with a NIfTI header"):
        stored_voxels(tmp_path / "x.nii")
