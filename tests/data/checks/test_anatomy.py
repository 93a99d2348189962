"""Names are understood, and sides and sizes that contradict them are found."""

from __future__ import annotations

from typing import Any

import pytest

from kdpipe.data.checks.anatomy import check_sides, check_volumes, parse_name


@pytest.mark.parametrize(
    ("name", "organ", "side"),
    [
        ("liver", "liver", "right"),
        ("spleen", "spleen", "left"),
        ("gall_bladder", "gallbladder", "right"),
        *((name, "kidney", "right") for name in (
            "right_kidney", "kidney_right", "kidney-right", "KidneyRight", "Right Kidney",
            "kidney_r", "r_kidney", "rkidney", "rt_kidney",
        )),
        ("left_adrenal_gland", "adrenal", "left"),
        ("adrenal", "adrenal", None),
        ("kidney", "kidney", None),
        ("head_of_femur_l", "headfemur", "left"),
        ("postcava", "venacava", None),
        ("inferior_vena_cava", "venacava", None),
        ("vertebrae_L1", "vertebrael1", None),
        ("left_ventricle", "ventricle", None),
        ("liver_tumour", "livertumour", None),
        ("lung_left_lower_lobe", "lunglowerlobe", None),
    ],
)  # fmt: skip
def test_names(name: str, organ: str, side: str | None) -> None:
    assert parse_name(name) == (organ, side)


def case(**x: float) -> dict[str, Any]:
    """A case with structures at `x` mm to the right, in a field of view of 200 mm around 0."""
    size, spacing = (200, 10, 10), (1.0, 1.0, 1.0)
    return {
        "native": {
            "size": size, "spacing": spacing, "origin": (0, 0, 0),
            "direction": (1, 0, 0, 0, 1, 0, 0, 0, 1),
        },
        "facts": {
            "centre": [0.0, 0.0, 0.0],
            "structures": {name: {"centroid": [at, 0.0, 0.0]} for name, at in x.items()},
        },
    }  # fmt: skip


def sides(**x: float) -> list[str]:
    return [f"{f.level}: {f.text}" for f in check_sides({"a": case(**x)})]


def test_right_structures_lie_to_the_right_of_left_ones() -> None:
    assert sides(liver=60, right_kidney=40, left_kidney=-40, spleen=-60, aorta=-90) == []
    (found,) = sides(liver=60, right_kidney=-40, left_kidney=40, spleen=-60)
    assert found.startswith("error: right_kidney lies 80 mm to the left of left_kidney")
    (found,) = sides(liver=-60, spleen=60)
    assert found.startswith("error: liver lies 120 mm to the left of spleen")
    assert sides(head_of_femur_l=5, head_of_femur_r=5)[0].startswith("error")
    assert sides(left_ventricle=5, right_ventricle=-5) == []


def test_one_side_alone_is_compared_with_the_middle() -> None:
    assert sides(liver=60) == sides(liver=-19) == sides(spleen=19) == sides(aorta=-50) == []
    assert sides(liver=-21) == [
        "warning: liver lies 21 mm to the left of the middle; is the image flipped?"
    ]
    assert sides(spleen=21) == [
        "warning: spleen lies 21 mm to the right of the middle; is the image flipped?"
    ]


def sizes(*cases: dict[str, float]) -> list[str]:
    geometries = {
        str(number): {"facts": {"structures": {name: {"ml": ml} for name, ml in found.items()}}}
        for number, found in enumerate(cases)
    }
    return [f.text.split(" mL")[0] for f in check_volumes(geometries)]


USUAL = {
    "liver": 1400, "spleen": 230, "right_kidney": 150, "left_kidney": 155, "stomach": 260,
    "pancreas": 70, "gallbladder": 35, "aorta": 90, "left_adrenal_gland": 4.1,
}  # fmt: skip


def test_usual_sizes_pass_and_one_odd_case_does_not_matter() -> None:
    odd = {"liver": 10.0, "gallbladder": 200.0}
    assert sizes(USUAL, odd, USUAL) == sizes(USUAL) == []
    assert sizes(USUAL | {"spleen": 100.0, "pancreas": 110.0}) == [], "too near to judge"
    assert sizes({"tumour": 5000.0, "liver": 1500.0}) == []
    assert sizes(USUAL | {"gallbladder": 170.0}, odd, odd, USUAL) != []


BTCV8 = ("spleen", "right_kidney", "left_kidney", "gallbladder", "liver", "stomach", "aorta",
         "pancreas")  # fmt: skip
TRANSUNET8 = ("aorta", "gallbladder", "left_kidney", "right_kidney", "liver", "pancreas", "spleen",
              "stomach")  # fmt: skip


@pytest.mark.parametrize(("files", "card"), [(BTCV8, TRANSUNET8), (TRANSUNET8, BTCV8)])
def test_the_two_orders_of_synapse_are_told_apart(
    files: tuple[str, ...], card: tuple[str, ...]
) -> None:
    named = {called: float(USUAL[true]) for true, called in zip(files, card, strict=True)}
    found = sizes(named, named)
    assert any("kidney has" in text for text in found)
    assert sizes({name: float(USUAL[name]) for name in card}) == []
