"""Label maps with their place in the world; the refusals are tested through `evaluate_folders`."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from kdpipe.errors import DataError
from kdpipe.images.files import case_name
from kdpipe.metrics.labelmaps import check_same_grid, read_label_map

TURN = (math.cos(0.3), -math.sin(0.3), 0.0, math.sin(0.3), math.cos(0.3), 0.0, 0.0, 0.0, 1.0)


def _image(direction: tuple[float, ...] = TURN) -> sitk.Image:
    image = sitk.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    image.SetSpacing((0.5, 0.75, 4.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    image.SetDirection(direction)
    return image


def test_axes_spacing_and_corners_are_those_of_itk(tmp_path: Path) -> None:
    image = _image()
    sitk.WriteImage(image, str(tmp_path / "x.mha"))
    label_map = read_label_map(tmp_path / "x.mha", "x")
    assert label_map.labels[1, 2, 3] == image[3, 2, 1] == 23
    assert label_map.spacing_mm == (4.0, 0.75, 0.5)
    expected = [
        image.TransformContinuousIndexToPhysicalPoint(corner)
        for corner in itertools.product((-0.5, 3.5), (-0.5, 2.5), (-0.5, 1.5))
    ]
    np.testing.assert_allclose(label_map.corners(), expected, atol=1e-12)


def test_a_flip_with_the_origin_at_the_other_end_is_another_grid(tmp_path: Path) -> None:
    # same box in the world, voxels in the opposite order: scoring them would be wrong
    image = _image((1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    sitk.WriteImage(image, str(tmp_path / "x.mha"))
    sitk.WriteImage(image[::-1], str(tmp_path / "y.mha"))
    maps = [read_label_map(tmp_path / f"{name}.mha", "x") for name in "xy"]
    check_same_grid("x", maps[0], maps[0])
    with pytest.raises(DataError, match="case x: reference and prediction are on different grids"):
        check_same_grid("x", *maps)


@pytest.mark.parametrize("largest", [1, 255, 256, 65535])
def test_no_label_is_folded(tmp_path: Path, largest: int) -> None:
    labels = np.zeros((2, 3, 4), dtype=np.int32)
    labels[1, 1, 1] = largest
    sitk.WriteImage(sitk.GetImageFromArray(labels), str(tmp_path / "x.nii.gz"))
    assert np.array_equal(read_label_map(tmp_path / "x.nii.gz", "x").labels, labels)


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("liver_1.nii.gz", "liver_1"),
        ("a.b.nii", "a.b"),
        ("x.nrrd", "x"),
        ("x.mha", "x"),
        (".tmp-abc-x.nii.gz", None),
        ("x.csv", None),
        ("x.gz", None),
    ],
)
def test_case_names(name: str, case: str | None) -> None:
    assert case_name(Path("folder") / name) == case
