"""The report on a data set: one page that is complete, safe and shows bodies the right way up."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from bodies import LABELS, SHAPE, Bodies, body
from PIL import Image

from kdpipe.data.checks.thumbnails import SIDE, colour_of, draw_case
from kdpipe.data.geometry import Grid
from kdpipe.data.store import StoredCase, sample_foreground, write_case
from kdpipe.errors import DataError
from kdpipe.labels import Labels


@pytest.fixture
def bodies(tmp_path: Path) -> Bodies:
    data = Bodies(tmp_path)
    for name in ("a", "b<i>&x"):
        data.add(name)
    return data


class Page(HTMLParser):
    """Checks that tags are closed in turn, and keeps addresses and text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(content)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page(bodies: Bodies) -> Page:
    return Page(bodies.checks["report"].read_text(encoding="utf-8"))


def test_page_is_self_contained_and_escapes_names(bodies: Bodies) -> None:
    waiver = {"code": "D01", "reason": "<script>alert(1)</script>"}
    bodies.channel = "C<u>"
    odd = Labels(raw={**LABELS.raw, 5: "gall<b>"}, may_be_absent="all")
    bodies.check(odd, pictures=True, title="T<u>", n_cases=5, integrity={"waivers": [waiver]})
    found = page(bodies)
    assert "i" not in found.tags and "script" not in found.tags and "u" not in found.tags
    assert found.text.count("b<i>&x") >= 1
    assert "gall<b>" in found.text
    assert "C<u> under the labels, p50" in found.text
    assert len(found.addresses) == 6
    assert all(a.startswith("data:image/png;base64,") for a in found.addresses)
    assert "http" not in bodies.checks["report"].read_text()
    for word in ("cases found 2", "patients 2", "Nothing stops", "waived", "liver", "RAS 2"):
        assert word in found.text


def test_numbers_of_the_structures(bodies: Bodies) -> None:
    bodies.check()
    livers = [np.count_nonzero(body(seed)[1] == 1) * 1.6 * 1.6 * 3 / 1000 for seed in (0, 1)]
    row = [f"{f(livers):.4g}" for f in (np.median, min, max)]
    assert " ".join(["liver 1 2/2", *row, "0"]) in page(bodies).text


def test_errors_are_told_without_a_single_prepared_case(bodies: Bodies) -> None:
    for case in bodies.cases:
        case.images[0].write_bytes(b"no image")
    with pytest.raises(DataError, match="2 cases cannot be prepared"):
        bodies.check(pictures=True)
    found = page(bodies)
    assert "2 errors stop the preparation" in found.text
    assert "D16 damaged files: 2" in found.text
    assert found.addresses == []


def test_images_that_are_not_to_be_shown_are_not(bodies: Bodies) -> None:
    bodies.check(pictures=False)
    assert page(bodies).addresses == []


def test_long_lists_are_cut(bodies: Bodies) -> None:
    expected = [{"cases": [f"z{i}"], "reason": "gone"} for i in range(40)]
    bodies.check(integrity={"exclude": expected})
    text = page(bodies).text
    assert "D01 cases missing or too many: 40" in text
    assert "and 15 more, see integrity.tsv" in text


def store(folder: Path, label: np.ndarray, grid: Grid) -> StoredCase:
    image = np.where(label > 0, 1.0, 0.2)[None]
    geometry = {"pad_value": 0.0, "prepared": grid._asdict()}
    write_case(folder, image, label, geometry, sample_foreground(label, len(LABELS.raw)))
    return StoredCase(folder)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def place(picture: np.ndarray, index: int) -> np.ndarray:
    """Return where the outline of a structure lies: (down, across), 0 to 1."""
    outline = (picture == colour_of(index)).all(axis=-1)
    return np.argwhere(outline).mean(axis=0) / picture.shape[:2]


# index axes in LPS terms: the same body stored to right, front, head and otherwise
@pytest.mark.parametrize("code", ["RAS", "LPS", "SAR"])
def test_pictures_are_oriented_as_radiologists_expect(tmp_path: Path, code: str) -> None:
    import SimpleITK as sitk

    label = np.zeros(SHAPE, np.uint8)
    label[20:30, 10:18, 8:14] = 1  # to the patient's right
    label[20:30, 2:8, 2:6] = 2  # behind and below it
    label[26:29, 10:18, 2:5] = 5  # below it
    label[2:8, 10:18, 8:14] = 4  # to the left
    image = sitk.GetImageFromArray(label.transpose(2, 1, 0))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))  # RAS
    image.SetSpacing((2, 2, 3))
    image = sitk.DICOMOrient(image, code)
    turned = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    drawn = draw_case(store(tmp_path / "case", turned, Grid.of(image)))
    assert list(drawn) == ["axial", "coronal", "sagittal"]
    axial, coronal, sagittal = (pixels(png) for png in drawn.values())
    assert axial.shape[:2] == (round(SIDE * 26 / 32), SIDE)
    assert coronal.shape[:2] == (round(SIDE * 60 / 64), SIDE)
    assert place(axial, 1)[1] < 0.5 < place(axial, 4)[1], "the right is on the left"
    assert place(coronal, 1)[1] < 0.5 < place(coronal, 4)[1]
    assert place(coronal, 5)[0] > place(coronal, 1)[0], "the head is at the top"
    assert place(axial, 1)[0] < 0.5, "the front is at the top"
    assert place(sagittal, 2)[0] > place(sagittal, 1)[0], "the head is at the top"
    assert place(sagittal, 2)[1] > place(sagittal, 1)[1], "the front is on the left"


def test_a_single_slice_and_a_case_without_labels(tmp_path: Path) -> None:
    grid = Grid((20, 10, 1), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    label = np.zeros((20, 10, 1), np.uint8)
    label[15:18, 1:4] = 1
    drawn = draw_case(store(tmp_path / "case", label, grid))
    assert list(drawn) == ["slice"]
    picture = pixels(drawn["slice"])
    assert picture.shape == (SIDE // 2, SIDE, 3)
    assert place(picture, 1) == pytest.approx([0.25, 0.825], abs=0.03)
    empty = draw_case(store(tmp_path / "none", np.zeros((8, 8, 8), np.uint8),
                            Grid((8, 8, 8), *grid[1:])))  # fmt: skip
    assert len(empty) == 3


def test_report_shows_what_is_in_the_store(bodies: Bodies) -> None:
    bodies.check(pictures=True)
    drawn = draw_case(StoredCase(bodies.root / "out/cases/a"))
    first = re.findall(r"base64,([^\"]+)\"", bodies.checks["report"].read_text())[0]
    assert base64.b64decode(first) == drawn["axial"]
