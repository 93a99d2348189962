"""Copies are recognised, and reported where they spoil a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from bodies import Bodies, body

from kdpipe.data.checks.hashes import NEAR, hash_image, near_pairs
from kdpipe.data.checks.leakage import (
    check_duplicates,
    check_split,
    check_study,
    find_pairs,
    read_cases,
)
from kdpipe.errors import DataError


def volume(seed: int) -> sitk.Image:
    image = sitk.GetImageFromArray(body(seed)[0].transpose(2, 1, 0))
    image.SetSpacing((1.6, 1.6, 3.0))
    return image


def distance(first: sitk.Image, second: sitk.Image) -> float:
    ((_, _, found),) = near_pairs([hash_image(first)[1]], [hash_image(second)[1]], limit=2.0)
    return found


@pytest.mark.parametrize("code", ["RAS", "LPS", "SAR", "PIL"])
def test_neither_axes_nor_number_type_change_the_exact_hash(code: str) -> None:
    image = volume(0)
    turned = sitk.DICOMOrient(sitk.Cast(image, sitk.sitkFloat64), code)
    assert hash_image(turned) == hash_image(image)


def test_a_single_voxel_and_a_flip_change_the_exact_hash() -> None:
    image, other = volume(0), volume(0)
    other[3, 4, 5] = other[3, 4, 5] + 1
    flipped = sitk.GetImageFromArray(sitk.GetArrayFromImage(image)[:, :, ::-1])
    assert len({hash_image(i)[0] for i in (image, other, flipped)}) == 3


def test_negative_zero_is_zero() -> None:
    zeros = [np.linspace(0, 1, 64, dtype=np.float32).reshape(4, 4, 4) for _ in range(2)]
    zeros[1][0, 0, 0] = -0.0
    assert len({hash_image(sitk.GetImageFromArray(a)) for a in zeros}) == 1


def test_a_copy_looks_like_itself_and_others_do_not() -> None:
    image = volume(0)
    copies = {
        "window": sitk.Clamp(image, sitk.sitkInt16, -175, 250),
        "8 bits": sitk.Cast(sitk.RescaleIntensity(image, 0, 255), sitk.sitkUInt8),
        "scaled": sitk.Cast(image, sitk.sitkFloat32) * 0.001 + 7,
        "turned": sitk.DICOMOrient(image, "SAR"),
    }
    for name, copy in copies.items():
        assert distance(image, copy) < NEAR / 2, name
    assert min(distance(image, volume(seed)) for seed in range(1, 6)) > 2 * NEAR
    assert distance(image, image[::-1, :, :]) == 0.0, "sitk turns the affine with the voxels"


def test_pairs_are_found_whatever_the_block() -> None:
    hashes = [hash_image(volume(seed))[1] for seed in (*range(66), 1, 64)]
    assert [(i, j) for i, j, _ in near_pairs(hashes)] == [(1, 66), (64, 67)]
    assert [(i, j) for i, j, _ in near_pairs(hashes[:66], hashes[:3])] == [(0, 0), (1, 1), (2, 2)]
    assert [(i, j) for i, j, _ in near_pairs(hashes[2:], hashes[1:3])] == [(0, 1), (64, 0)]
    found = near_pairs(hashes[:3], hashes[63:])
    assert [(i, j) for i, j, _ in found] == [(1, 3)]


def facts(seed: int, subject: str = "", *names: str, window: bool = False) -> dict[str, Any]:
    image = volume(seed)
    exact, rough = hash_image(sitk.Clamp(image, sitk.sitkInt16, -175, 250) if window else image)
    return {
        "subject": subject or f"patient_{seed}", "exact": [exact], "rough": rough,
        "structures": dict.fromkeys(names or ("liver",), {}),
    }  # fmt: skip


CASES = {
    "a": facts(0), "b": facts(1), "c": facts(2), "d": facts(3),
    "copy": facts(0, "nobody"), "near": facts(0, "somebody", window=True),
    "same": facts(1, "patient_1", window=True),
}  # fmt: skip


def test_pairs_within_a_data_set() -> None:
    found = [(pair.first, pair.second, pair.how) for pair in find_pairs(CASES)]
    expected = [("a", "copy", "exact"), ("a", "near", "near"), ("copy", "near", "near")]
    assert found == expected, "what looks like another image of the same patient is left out"


def test_equal_channels_of_one_case_are_found() -> None:
    twice = CASES["c"] | {"exact": CASES["c"]["exact"] * 2}
    (found,) = check_duplicates({"c": twice, "d": CASES["d"]})
    assert (found.code, found.case) == ("D14", "c")
    assert "channels" in found.text


def test_one_equal_channel_makes_a_duplicate() -> None:
    second = facts(5) | {"exact": ["0" * 64, CASES["d"]["exact"][0]]}
    assert [pair[:3] for pair in find_pairs({"d": CASES["d"], "e": second})] == [
        ("d", "e", "exact")
    ]


@pytest.mark.parametrize(
    ("train", "val", "test", "found"),
    [
        ("ab", "c", "d", []),
        (("a", "copy", "near"), "c", "d", []),
        ("ab", "c", ("d", "copy"), [("a", "a (train) and copy (test) have the same voxels")]),
        ("bc", ("a",), ("d", "near"), [("a", "a (val) and near (test) look the same")]),
        (("a", "b"), ("d", "near"), ("d", "near"), [("a", "a (train) and near (val) look")]),
        ("bc", ("a", "copy"), ("a", "copy"), []),
    ],
)
def test_duplicates_across_the_parts_of_a_split(
    train: Any, val: Any, test: Any, found: Any
) -> None:
    findings = check_split({"train": train, "val": val, "test": test}, CASES)
    assert [(f.code, f.level, f.case) for f in findings] == [("D14", "error", c) for c, _ in found]
    for finding, (_, text) in zip(findings, found, strict=True):
        assert finding.text.startswith(text)


def test_structures_that_cannot_be_learnt() -> None:
    cases = CASES | {"d": facts(3, "", "liver", "cyst")}
    parts = {"train": "ab", "val": "c", "test": "d"}
    (found,) = check_split(parts, cases, ["liver", "cyst"])
    assert (found.code, found.level) == ("D08", "error")
    assert "cyst is in no training case" in found.text
    assert check_split(parts | {"train": "d", "test": "a"}, cases, ["liver", "cyst"]) == []
    with pytest.raises(DataError, match="1 cases that were not checked, such as 'z'"):
        check_split(parts | {"val": "z"}, cases)


def test_data_sets_that_share_images_or_patients() -> None:
    one = {name: CASES[name] for name in "abc"}
    two = {"x": CASES["copy"], "y": CASES["same"], "z": CASES["d"]}
    three = {"q": facts(9)}
    found = check_study({"two": two, "one": one, "three": three}, {"three": ("one", "other")})
    assert [(f.code, f.level) for f in found] == [("D14", "warning")] * 2
    assert "one and three share patients, says a card" in found[0].text
    assert "one and two share 2 images (a = x, b = y)" in found[1].text
    assert check_study({"one": one, "three": three}, {}) == []


def test_what_the_check_wrote_is_what_is_compared(tmp_path: Path) -> None:
    data = Bodies(tmp_path)
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        data.add(name, seed)
    data.check()
    cases = read_cases(data.checks["integrity"])
    (found,) = check_split({"train": ["a"], "val": ["b"], "test": ["c"]}, cases, ["spleen"])
    assert "a (train) and c (test) have the same voxels" in found.text
    data.checks["integrity"].write_text("{}")
    with pytest.raises(DataError, match="delete it"):
        read_cases(data.checks["integrity"])
