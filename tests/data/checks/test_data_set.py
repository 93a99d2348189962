"""Each quirk that is planted in a sound data set is found, and nothing else is."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from bodies import AFFINE, LABELS, Bodies, body, save

from kdpipe.cards import load_card
from kdpipe.data.checks.verdict import Checks
from kdpipe.data.folders.layout import list_files
from kdpipe.data.manifest import Case
from kdpipe.data.preparation.prepare import prepare
from kdpipe.errors import DataError
from kdpipe.labels import Labels
from kdpipe.rules import Rules


@pytest.fixture
def bodies(tmp_path: Path) -> Bodies:
    data = Bodies(tmp_path)
    for name in "abc":
        data.add(name)
    return data


def test_a_sound_data_set_gives_no_finding(bodies: Bodies) -> None:
    assert bodies.check(patch=(16, 16, 16), n_cases=3, expected=("a", "c")) == []
    assert bodies.findings == []


# what is wrong with one case


def image_and_label(case: Case, affine: np.ndarray, turn: Any = lambda a: a) -> None:
    image, label = (np.asarray(nibabel.load(f).dataobj) for f in (case.images[0], case.label))
    save(case.images[0], turn(image), affine)
    save(case.label, turn(label), affine)


def rewrite_image(case: Case, change: Callable[[np.ndarray], np.ndarray]) -> None:
    save(case.images[0], change(np.asarray(nibabel.load(case.images[0]).dataobj)))


def rewrite_label(case: Case, change: Callable[[np.ndarray], np.ndarray]) -> None:
    save(case.label, change(np.asarray(nibabel.load(case.label).dataobj)))


def no_sform(case: Case) -> None:
    for file in (case.images[0], case.label):
        image = nibabel.load(file)
        image = nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header)
        image.set_qform(AFFINE, 1)
        image.set_sform(None, 0)
        nibabel.save(image, file)


def forms_differ(case: Case) -> None:
    shifted = AFFINE.copy()
    shifted[0, 3] += 4
    for file in (case.images[0], case.label):
        image = nibabel.Nifti1Image(np.asarray(nibabel.load(file).dataobj), None)
        image.set_qform(AFFINE, 1)
        image.set_sform(shifted, 2)
        nibabel.save(image, file)


def no_form(case: Case) -> None:
    """Only the spacing is known, and the axes are those of a body in RAS order all the same."""
    for file in (case.images[0], case.label):
        image = nibabel.load(file)
        image = nibabel.Nifti1Image(np.asarray(image.dataobj)[::-1, ::-1], None)
        image.header.set_zooms((1.6, 1.6, 3.0))
        nibabel.save(image, file)


def identity(case: Case) -> None:
    image_and_label(case, np.eye(4))


def ones(case: Case) -> None:
    affine = np.eye(4)
    affine[:3, 3] = -16, -13, -500
    image_and_label(case, affine)


def out_of_range(case: Case) -> None:
    def change(image: np.ndarray) -> np.ndarray:
        image = image.copy()
        image[0, 0, 0] = -8192
        return image

    rewrite_image(case, change)


def doubles(case: Case) -> None:
    rewrite_image(case, lambda image: image.astype(np.float64))


def wide_labels(case: Case) -> None:
    rewrite_label(case, lambda label: label.astype(np.uint16))


def lost_axes(case: Case) -> None:
    """Thick slices end up from left to right, as with readers that ignore the affine."""
    affine = np.diag([6.0, 1.6, 1.6, 1.0])
    affine[:3, 3] = -100, -20, -20
    image_and_label(case, affine)


def mirrored(case: Case) -> None:
    image_and_label(case, AFFINE, lambda array: array[::-1])


def wrong_sign(case: Case) -> None:
    affine = AFFINE.copy()
    affine[0] *= -1
    image_and_label(case, affine)


def no_kidney(case: Case) -> None:
    rewrite_label(case, lambda label: np.where(label == 2, 0, label).astype(np.uint8))


ODD: dict[Callable[[Case], None], tuple[list[str], str]] = {
    no_sform: (["D04 warning b"] * 2, "sform code is 0.*the reader used qform"),
    forms_differ: (["D04 warning b"] * 2, "4 mm apart; the reader used qform"),
    no_form: (["D04 warning b"] * 2, "neither qform nor sform"),
    identity: (["D05 warning b"], "the affine is the identity"),
    ones: (["D05 warning b"], "the spacing is 1 x 1 x 1 mm"),
    no_kidney: (["D08 warning b"], "lacks right_kidney"),
    out_of_range: (["D09 warning b"], "from -8192 to .* HU"),
    doubles: (["D10 info b"], "64-bit floats"),
    wide_labels: (["D10 info b"], "16-bit unsigned integer"),
    lost_axes: (["D11 warning b"], "thickest from left to right"),
}


@pytest.mark.parametrize("quirk", ODD, ids=lambda quirk: quirk.__name__)
def test_what_is_odd_is_found_and_does_not_stop(
    bodies: Bodies, quirk: Callable[[Case], None]
) -> None:
    quirk(bodies.cases[1])
    found, text = ODD[quirk]
    assert bodies.check() == found
    assert_text(bodies, text)


def assert_text(bodies: Bodies, pattern: str) -> None:
    assert any(re.search(pattern, finding["text"]) for finding in bodies.findings)


@pytest.mark.parametrize("quirk", [identity, ones, out_of_range, doubles])
def test_what_is_odd_in_ct_only(bodies: Bodies, quirk: Callable[[Case], None]) -> None:
    quirk(bodies.cases[1])
    expected = {identity: ["D05 warning b"], doubles: ["D10 info b"]}.get(quirk, [])
    assert bodies.check(modality="MR") == expected


@pytest.mark.parametrize("quirk", [mirrored, wrong_sign])
def test_a_flipped_case_stops(bodies: Bodies, quirk: Callable[[Case], None]) -> None:
    quirk(bodies.cases[1])
    with pytest.raises(DataError, match="case 'b': .* to the left of"):
        bodies.check()
    assert bodies.open() == ["D12 error b"]
    assert bodies.check(integrity={"left_right": False}) == []


def no_image(case: Case) -> None:
    case.images[0].unlink()


def other_shape(case: Case) -> None:
    rewrite_label(case, lambda label: label[:-1])


def moved(case: Case) -> None:
    affine = AFFINE.copy()
    affine[0, 3] += 1
    save(case.label, np.asarray(nibabel.load(case.label).dataobj), affine)


def sheared(case: Case) -> None:
    affine = AFFINE.copy()
    affine[0, 1] = 0.3
    image = nibabel.Nifti1Image(body(1)[0], affine)
    image.set_qform(None, 0)
    nibabel.save(image, case.images[0])


def unknown_id(case: Case) -> None:
    rewrite_label(case, lambda label: np.where(label == 1, 9, label).astype(np.uint8))


def half_ids(case: Case) -> None:
    rewrite_label(case, lambda label: label * np.float32(0.5))


def nothing(case: Case) -> None:
    rewrite_label(case, np.zeros_like)


def not_a_number(case: Case) -> None:
    rewrite_image(case, lambda image: np.where(image < 0, np.nan, image).astype(np.float32))


def constant(case: Case) -> None:
    rewrite_image(case, lambda image: np.full_like(image, 7))


def cut_off(case: Case) -> None:
    content = case.images[0].read_bytes()
    case.images[0].write_bytes(content[: len(content) // 2])


def bad_checksum(case: Case) -> None:
    content = bytearray(case.label.read_bytes())
    content[-8] ^= 0xFF
    case.label.write_bytes(bytes(content))


def too_dark(case: Case) -> None:
    rewrite_image(case, lambda image: image // 100 - 900)


WRONG = {
    no_image: "D01",
    other_shape: "D02",
    moved: "D03",
    sheared: "D06",
    unknown_id: "D07",
    half_ids: "D07",
    nothing: "D08",
    not_a_number: "D09",
    constant: "D09",
    cut_off: "D16",
    bad_checksum: "D16",
    too_dark: "P01",
}


@pytest.mark.parametrize("quirk", WRONG, ids=lambda quirk: quirk.__name__)
def test_what_is_wrong_stops_after_all_cases_were_looked_at(
    bodies: Bodies, quirk: Callable[[Case], None]
) -> None:
    quirk(bodies.cases[0])
    cut_off(bodies.cases[1])
    with pytest.raises(DataError, match="2 cases cannot be prepared") as caught:
        bodies.check()
    found = [f for f in bodies.open() if " error " in f]
    assert found == sorted([f"{WRONG[quirk]} error a", "D16 error b"])
    assert str(bodies.root) in str(caught.value)
    assert sorted(p.name for p in (bodies.root / "out/cases").iterdir()) == ["c"]
    assert not (bodies.root / "out/cases.tsv").exists()
    assert bodies.checks["report"].is_file()


@pytest.mark.parametrize("quirk", [moved, nothing])
def test_a_waiver_lets_a_case_pass(bodies: Bodies, quirk: Callable[[Case], None]) -> None:
    quirk(bodies.cases[1])
    waiver = {"code": WRONG[quirk], "cases": ["b"], "reason": "is known"}
    assert bodies.check(integrity={"waivers": [waiver]}) == []
    kept = [(f["code"], f["case"], f["waived"]) for f in bodies.findings if f["waived"]]
    assert kept == [(WRONG[quirk], "b", "is known")]
    # the case is stored, and stops again once the waiver is gone
    with pytest.raises(DataError, match="case 'b'"):
        bodies.check(integrity={"waivers": [waiver | {"cases": ["a", "c"]}]})
    assert bodies.open() == [f"{WRONG[quirk]} error b"]


def test_a_waived_affine_puts_the_label_map_on_the_grid_of_its_image(bodies: Bodies) -> None:
    bodies.check()
    stored = bodies.root / "out/cases/b/label.b2nd"
    before = stored.read_bytes()
    moved(bodies.cases[1])
    bodies.check(integrity={"waivers": [{"code": "D03", "reason": "is known"}]})
    assert stored.read_bytes() == before


@pytest.mark.parametrize("quirk", [other_shape, unknown_id, cut_off, not_a_number, no_image])
def test_what_cannot_be_used_cannot_be_waived(
    bodies: Bodies, quirk: Callable[[Case], None]
) -> None:
    quirk(bodies.cases[1])
    waivers = [{"code": WRONG[quirk], "reason": "let it pass"}]
    with pytest.raises(DataError, match="1 cases cannot be prepared"):
        bodies.check(integrity={"waivers": waivers})
    assert f"{WRONG[quirk]} error b" in bodies.open()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_excluded_case_is_not_looked_at(bodies: Bodies, workers: int) -> None:
    bodies.check()
    bodies.cases[1].images[0].write_bytes(b"no image")
    exclude = [{"cases": ["b", "z"], "reason": "is broken"}]
    found = bodies.check(workers=workers, integrity={"exclude": exclude})
    assert found == ["D01 warning z", "D01 info b"]
    assert [f["text"] for f in bodies.findings if f["case"] == "b"] == [
        "excluded by the card: is broken"
    ]
    assert sorted(p.name for p in (bodies.root / "out/cases").iterdir()) == ["a", "c"]
    assert "\nb\t" not in (bodies.root / "out/cases.tsv").read_text()


# what is wrong with the list and the names


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        ({"n_cases": 4}, "3 cases with labels are there, 4 were published"),
        ({"n_cases": 2}, "3 cases with labels are there, 2 were published"),
        ({"expected": ("a", "y", "z")}, "2 cases that the card's splits name are not there: y, z"),
    ],
)
def test_missing_and_additional_cases(bodies: Bodies, rules: Any, text: str) -> None:
    with pytest.raises(DataError, match=f"1 errors of the data set:\n  {text}"):
        bodies.check(**rules)
    assert bodies.open() == ["D01 error"]
    waiver = {"code": "D01", "reason": "a subset"}
    assert bodies.check(**rules, integrity={"waivers": [waiver]}) == []
    with pytest.raises(DataError):
        bodies.check(**rules, integrity={"waivers": [waiver | {"cases": ["a"]}]})


def test_excluded_cases_need_not_be_there(bodies: Bodies) -> None:
    exclude = [{"cases": ["z"], "reason": "withdrawn"}]
    found = bodies.check(expected=("a", "z"), integrity={"exclude": exclude})
    assert found == ["D01 warning z"]


def test_a_structure_that_no_case_has_is_an_error_even_if_cases_may_lack_it(bodies: Bodies) -> None:
    more = Labels(raw={**LABELS.raw, 6: "ghost"}, may_be_absent="all")
    with pytest.raises(DataError, match="no case has ghost"):
        bodies.check(more)
    assert bodies.open() == ["D08 error"]


def test_shuffled_names_are_found_by_their_volumes(bodies: Bodies) -> None:
    """As the two orders of the eight organs of Synapse, where a gallbladder becomes a kidney."""
    names = ["background", "liver", "gallbladder", "left_kidney", "spleen", "right_kidney"]
    wrong = Labels(raw=dict(enumerate(names)), may_be_absent="all")
    with pytest.raises(DataError, match="right_kidney has a median volume .* gallbladder of"):
        bodies.check(wrong)
    assert "D13 error" in bodies.open()


def test_swapped_sides_of_the_names_are_found_in_every_case(bodies: Bodies) -> None:
    names = ["background", "liver", "left_kidney", "right_kidney", "spleen", "gallbladder"]
    with pytest.raises(DataError, match="3 errors of the data set"):
        bodies.check(Labels(raw=dict(enumerate(names))))
    assert bodies.open() == ["D12 error a", "D12 error b", "D12 error c"]


def test_a_copied_case_is_found(bodies: Bodies) -> None:
    image = np.asarray(nibabel.load(bodies.cases[0].images[0]).dataobj)
    bodies.add("copy", seed=0)
    windowed = bodies.add("windowed", seed=0)
    save(windowed.images[0], np.clip(image, -175, 250).astype(np.float32))
    assert bodies.check() == ["D14 warning a"] * 2 + ["D14 warning copy"]
    texts = [finding["text"] for finding in bodies.findings if finding["code"] == "D14"]
    assert "a and copy, of two patients, have the same voxels" in texts
    assert any("a and windowed, of two patients, look the same" in text for text in texts)


def test_small_volumes_and_cut_structures_are_told(bodies: Bodies) -> None:
    rewrite_label(bodies.cases[1], lambda label: np.roll(label, 6, axis=0))
    bodies.check(patch=(16, 16, 24), integrity={"left_right": False})
    small = [f["case"] for f in bodies.findings if "smaller than the patch" in f["text"]]
    assert small == ["a", "b", "c"]
    cut = [(f["case"], f["text"]) for f in bodies.findings if "reaches" in f["text"]]
    assert cut == [("b", "reaches the border of the volume: liver (LR)")]


def test_a_slice_has_no_sides_to_compare(bodies: Bodies) -> None:
    mirrored(bodies.cases[0])
    assert bodies.check(has_spacing=False) == []


# files and resuming


def test_files_hold_all_findings_and_no_paths(bodies: Bodies) -> None:
    cut_off(bodies.cases[0])
    no_kidney(bodies.cases[1])
    with pytest.raises(DataError):
        bodies.check()
    with bodies.checks["table"].open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert [(r["code"], r["level"], r["case"], r["file"]) for r in rows] == [
        ("D16", "error", "a", "imagesTr/a.nii.gz"),
        ("D08", "warning", "b", "labelsTr/b.nii.gz"),
    ]
    content = json.loads(bodies.checks["integrity"].read_text())
    assert content["counts"] == {"error": 1, "warning": 1, "info": 0, "waived": 0}
    assert (content["n_cases"], content["n_prepared"]) == (3, 2)
    assert sorted(content["cases"]) == ["b", "c"]
    for file in bodies.checks.values():
        assert str(bodies.root) not in file.read_text()


def test_a_second_run_reads_no_file_and_finds_the_same(bodies: Bodies) -> None:
    no_kidney(bodies.cases[1])
    bodies.add("copy", seed=0)
    cases = bodies.hashed()
    bodies.prepare(cases)
    first = {name: file.read_bytes() for name, file in bodies.checks.items()}
    assert b"D14" in first["table"] and b"D08" in first["table"]
    for part in ("imagesTr", "labelsTr"):
        shutil.rmtree(bodies.root / part)
    bodies.prepare(cases)
    assert {name: file.read_bytes() for name, file in bodies.checks.items()} == first


def test_rules_of_a_card() -> None:
    card = load_card("chaos_mr_t2")
    rules = Rules.of(card, (128, 128, 16))
    assert (rules.dataset, rules.modality) == ("chaos_mr_t2", "MR")
    assert rules.n_cases == card.layout.n_cases
    assert rules.patch == (128, 128, 16)
    assert rules.names == card.labels.raw
    assert rules.pictures
    explicit = {
        "kind": "explicit", "train": ["03-05"], "val": ["01"], "test": "val",
    }  # fmt: skip
    content = card.model_dump(mode="json")
    content["splits"]["paper"] = explicit
    content["licence"]["gated"] = True
    changed = Rules.of(type(card).model_validate(content))
    assert changed.expected == ("01", "03", "04", "05")
    assert not changed.pictures
    assert Rules.model_validate_json(changed.model_dump_json()) == changed


# real data


@pytest.mark.parametrize("name", ["chaos", "hippocampus"])
def test_real_data_pass(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    card = load_card({"chaos": "chaos_mr_t2", "hippocampus": "msd_task04_hippocampus"}[name])
    cases = list_files(folder, card.layout, len(card.channels))[:: 2 if name == "chaos" else 20]
    rules = Rules.of(card).model_copy(update={"n_cases": len(cases), "expected": ()})
    checks = Checks(rules, *(tmp_path / f"i.{end}" for end in ("json", "tsv", "html")))
    prepare(
        cases, card.preset("default").preparation, card.labels, card.channels,
        tmp_path / "cases", tmp_path / "cases.tsv", tmp_path / "fingerprint.json", "d", 1, None,
        checks,
    )  # fmt: skip
    found = json.loads(checks.integrity.read_text())
    assert found["counts"]["error"] == 0
    assert {f["code"] for f in found["findings"]} <= {"D05", "D15"}
