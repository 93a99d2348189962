"""Brain phantoms are well-formed, reproducible, nested, and contrasted as MR sequences are."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from kdpipe.cards import load_card
from kdpipe.data.acquisition.fetch import fetch
from kdpipe.data.folders.layout import index
from kdpipe.data.manifest import read_manifest
from kdpipe.data.phantoms._common import ORIENTATIONS
from kdpipe.data.phantoms.brain import CHANNELS, ED, ET, NCR, STRUCTURES, generate, make_case
from kdpipe.data.preparation.prepare import prepare
from kdpipe.data.store import StoredCase
from kdpipe.errors import ConfigError
from kdpipe.labels import Labels
from kdpipe.sources import BrainTumour

CARD = load_card("phantom_brain")
GENERATOR = CARD.generator
assert isinstance(GENERATOR, BrainTumour)
N_CASES = GENERATOR.n_cases
T1N, T1C, T2W, T2F = range(4)
LACKING = {5: ET, 11: NCR, 17: ET, 23: NCR}
Case = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("brain")
    generate(folder, GENERATOR, CARD.labels)
    return folder


@pytest.fixture(scope="module")
def cases(written: Path) -> list[Case]:
    """Channels, label ids and spacing of each case as read back and turned to RAS+."""
    found = []
    for case in index(written, CARD.layout, len(CARD.channels)):
        images = [nib.as_closest_canonical(nib.load(file)) for file in (*case.images, case.label)]
        *channels, ids = (np.asanyarray(image.dataobj) for image in images)
        found.append((np.stack(channels), ids, np.array(images[0].header.get_zooms())))
    return found


def test_layout_types_and_orientation(written: Path) -> None:
    description = json.loads((written / "dataset.json").read_text())
    assert tuple(description["channel_names"].values()) == CHANNELS == CARD.channels
    assert description["labels"] == {name: i for i, name in CARD.labels.raw.items()}
    found = index(written, CARD.layout, len(CARD.channels))
    assert len(found) == description["numTraining"] == N_CASES
    axes = set()
    for case in found:
        assert [file.name for file in case.images] == [
            f"{case.case}_{channel:04d}.nii.gz" for channel in range(4)
        ]
        label = nib.load(case.label)
        assert label.get_data_dtype() == np.uint8
        for file in case.images:
            image = nib.load(file)
            assert image.get_data_dtype() == np.int16
            np.testing.assert_array_equal(image.affine, label.affine)
            np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
        axes.add("".join(nib.aff2axcodes(label.affine)))
    assert axes <= set(ORIENTATIONS)
    assert len(axes) >= 4


def test_grids_vary_within_the_limits(cases: list[Case]) -> None:
    low, high = np.array(GENERATOR.shape_min), np.array(GENERATOR.shape_max)
    shapes = {ids.shape for _, ids, _ in cases}
    assert len(shapes) > N_CASES // 2
    assert all((low <= shape).all() and (shape <= high).all() for shape in map(np.array, shapes))
    spacings = {tuple(np.round(spacing.astype(float), 4).tolist()) for _, _, spacing in cases}
    assert spacings == set(GENERATOR.spacings)


def test_a_brain_on_nothing(cases: list[Case]) -> None:
    for image, ids, spacing in cases:
        brain = image[0] > 0
        for channel in image:
            np.testing.assert_array_equal(channel > 0, brain)
            assert channel.min() == 0
        assert not ids[~brain].any()
        assert ndimage.label(brain)[1] == 1
        assert 300 < brain.sum() * spacing.prod() / 1000 < 550  # ml
        for axis in range(3):  # nothing is cut off by the grid
            assert not brain.take([0, -1], axis).any()


def test_regions_are_nested(cases: list[Case]) -> None:
    """What surrounds NCR is ET, what surrounds the core is edema, brain's surface apart."""
    inside = []
    for number, (_, ids, spacing) in enumerate(cases):
        core = (ids == NCR) | (ids == ET)
        around = ndimage.binary_dilation(core) & ~core
        inside.append((ids[around] == ED).mean())
        volume = {i: (ids == i).sum() * spacing.prod() / 1000 for i in (NCR, ED, ET)}  # ml
        assert 3 < sum(volume.values()) < 40
        assert volume[ED] > volume[NCR] + volume[ET]
        parts, _ = ndimage.label(ids > 0)
        assert np.bincount(parts.ravel())[1:].max() > 0.95 * (ids > 0).sum()
        if number not in LACKING:
            around = ndimage.binary_dilation(ids == NCR) & (ids != NCR)
            assert (ids[around] == ET).mean() > 0.7, f"case {number}: NCR is not enclosed by ET"
    assert min(inside) > 0.5
    assert np.mean(inside) > 0.9


def test_tumours_lie_on_either_side(cases: list[Case]) -> None:
    right = []
    for image, ids, _ in cases:
        middle = np.argwhere(image[0] > 0)[:, 0].mean()
        right.append(np.argwhere(ids > 0)[:, 0].mean() > middle)
    assert 0.25 < np.mean(right) < 0.75


def test_contrasts_are_those_of_the_sequences(cases: list[Case]) -> None:
    """In units of the brain's median: ET is bright in t1c only, ED in t2, NCR dark in T1."""
    means: dict[int, list[np.ndarray]] = {NCR: [], ED: [], ET: []}
    for image, ids, _ in cases:
        healthy = np.array([np.median(channel[(channel > 0) & (ids == 0)]) for channel in image])
        for structure, found in means.items():
            if (ids == structure).sum() > 50:  # fewer are all surface
                found.append(image[:, ids == structure].mean(axis=1) / healthy)
    table = {structure: np.array(found) for structure, found in means.items()}
    assert (table[ET][:, T1C] > 1.25).all() and (table[ET][:, T1N] < 1.15).all()
    assert (table[ED][:, [T2W, T2F]] > 1.15).all() and (table[ED][:, [T1N, T1C]] < 1.2).all()
    assert (table[NCR][:, T1C] < 1).all()
    assert table[NCR][:, T1C].mean() < 0.85 * table[ED][:, T1C].mean()


def test_no_single_channel_tells_the_enhancing_rim(cases: list[Case]) -> None:
    """Veins and plexus are as bright in t1c; what tells them is that they are dark in t2f."""
    distractors = []
    for number, (image, ids, _) in enumerate(cases):
        if LACKING.get(number) != ET:
            bright = (image[T1C] > np.median(image[T1C][ids == ET])) & (ids == 0)
            distractors.append(bright.sum())
    assert np.median(distractors) > 20


def test_intensities_are_uncalibrated(cases: list[Case]) -> None:
    medians = np.array([[np.median(c[c > 0]) for c in image] for image, _, _ in cases])
    assert (medians.max(axis=0) / medians.min(axis=0) > 3).all()
    assert (np.ptp(np.log(medians), axis=1) > 0.1).all(), "each channel has a scale of its own"


def test_every_nth_case_lacks_et_or_ncr_in_turn(cases: list[Case]) -> None:
    for number, (_, ids, _) in enumerate(cases):
        expected = set(range(len(STRUCTURES))) - {LACKING.get(number)}
        assert set(np.unique(ids).tolist()) == expected, number
    complete = make_case(BrainTumour(absent_every=0), 5)[1]
    assert set(np.unique(complete).tolist()) == set(range(len(STRUCTURES)))


def test_noise_is_what_was_asked() -> None:
    clean, ids, _, _ = make_case(BrainTumour(noise_sd=0), 0)
    noisy = make_case(BrainTumour(noise_sd=0.1), 0)[0]
    for channel in range(4):
        inside = (clean[channel] > 0) & (ids == 0)
        white = np.median(clean[channel][inside])
        spread = (noisy[channel].astype(float) - clean[channel])[inside].std() / white
        assert 0.06 < spread < 0.14


def test_a_case_depends_on_seed_and_index_only(tmp_path: Path, written: Path) -> None:
    generate(tmp_path, GENERATOR.model_copy(update={"n_cases": 3}), CARD.labels)
    files = sorted(tmp_path.glob("*/*.nii.gz"))
    assert len(files) == 3 * 5
    for file in files:
        assert file.read_bytes() == (written / file.parent.name / file.name).read_bytes()
    first, other = make_case(BrainTumour(seed=0), 0)[0], make_case(BrainTumour(seed=1), 0)[0]
    assert first.shape != other.shape or (first != other).any()


def test_fetched_and_prepared_as_the_card_says(tmp_path: Path) -> None:
    needed = {"id", "channels", "access", "generator", "files", "layout"}
    run = CARD.model_dump(mode="json", include=needed)
    run["generator"] |= {"n_cases": 3, "absent_every": 0}
    run |= {"structures": CARD.labels.structures, "source": None, "accept_checksum": False}
    run["ids"] = {"n_labels": len(CARD.labels.raw)}
    folders = [tmp_path / name for name in ("raw", "archives", "labels")]
    fetch(run, *folders, tmp_path / "manifest.tsv")
    found = read_manifest(tmp_path / "manifest.tsv")
    assert [case.case for case in found] == ["brain_000", "brain_001", "brain_002"]
    preparation, store = CARD.preset("default").preparation, tmp_path / "cases"
    tables = tmp_path / "cases.tsv", tmp_path / "fingerprint.json"
    prepare(found, preparation, CARD.labels, CARD.channels, store, *tables, "digest", 1, None)
    for case in found:
        stored = StoredCase(store / case.case)
        assert stored.geometry["warnings"] == []
        assert min(stored.geometry["voxels_per_class"]) > 20
        size = stored.geometry["prepared"]["size"]
        assert all(40 < side <= patch for side, patch in zip(size, (64, 64, 64), strict=True))
    assert CARD.preset("slices").preparation == preparation


@pytest.mark.parametrize(
    ("generator", "labels", "message"),
    [
        ({}, {0: "background", 1: "NRC"}, r"makes no 'NRC': did you mean 'NCR'\?"),
        ({"shape_min": (8, 68, 56)}, {0: "background", 1: "ED"}, r"need 16 <= min"),
    ],
)
def test_wrong_cards(tmp_path: Path, generator: dict, labels: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(tmp_path, BrainTumour(**generator), Labels(raw=labels))
    assert not list(tmp_path.iterdir())
