"""Cards: the shipped ones hold together, and a wrong one says what is wrong and where."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdpipe.cards import Card, card_files, load_card
from kdpipe.commands.pages import write_pages
from kdpipe.data.splits._rules import Row
from kdpipe.data.splits.split import make_split
from kdpipe.errors import ConfigError
from kdpipe.labels import paint_order
from kdpipe.protocols import DEFAULT_TOLERANCE_MM, get_protocol
from kdpipe.sources import expand_ids

IDS = {
    "btcv": ("0001-0010", "0021-0040"),
    "synapse_multiorgan": ("0001-0010", "0021-0040"),
    "flare22": ("0001-0050",),
    "lits17": ("0-130",),
    "lits17_tumor": ("0-130",),
}

MINE: dict[str, Any] = {
    "schema_version": 1,
    "id": "mine",
    "title": "Mine",
    "modality": "CT",
    "channels": ["CT"],
    "licence": {"spdx": "CC0-1.0"},
    "access": {"mode": "local"},
    "labels": {"raw": {0: "background", 1: "liver", 2: "spleen"}},
    "splits": {"default": {"kind": "fractions", "val": 0.1, "test": 0.2}},
    "presets": {
        "default": {
            "intensity": {"kind": "window", "low": -100, "high": 200},
            "patch": [16, 16, 16],
        }
    },
}


@pytest.fixture(params=sorted(card_files()))
def card(request: pytest.FixtureRequest) -> Card:
    """Each shipped card in turn."""
    return load_card(request.param)


def known_ids(card: Card) -> list[str]:
    """The ids of a card's cases: those that it downloads one by one, or made-up ones."""
    ids = IDS.get(card.id) or next((file.cases for file in card.files if file.cases), ())
    return expand_ids(ids) or [f"c{i:04d}" for i in range(n_cases(card))]


def n_cases(card: Card) -> int:
    return card.generator.n_cases if card.generator else card.layout.n_cases or 0


def rows_of(card: Card) -> list[Row]:
    """As many cases as were published, in the folders that the layout tells apart."""
    if card.id == "acdc":  # two frames of each patient; 100 patients to train on, 50 to test on
        patients = [
            (f"patient{n:03d}", "training" if n <= 100 else "testing") for n in range(1, 151)
        ]
        return [Row(f"{p}_frame{f:02d}", p, part) for p, part in patients for f in (1, 12)]
    folders = re.search(r"\(\?P<part>([^()]+)\)", card.layout.find or "")
    parts = folders[1].split("|") if folders else [""]
    ids = known_ids(card)
    return [Row(case, case, parts[i % len(parts)]) for i, case in enumerate(ids)]


def test_as_many_ids_as_cases(card: Card) -> None:
    ids = known_ids(card)
    assert len(set(ids)) == len(ids) == n_cases(card) > 0
    if card.id in IDS or any(file.cases for file in card.files):
        assert all(re.fullmatch(card.layout.case_pattern, case) for case in ids)


def test_labels_and_regions(card: Card) -> None:
    labels = card.labels
    assert labels.raw[0] == "background"
    assert not card.layout.masks or set(card.layout.masks) == set(labels.structures)
    if labels.palette:
        assert sorted(labels.palette.values()) == sorted(labels.raw)
    if labels.remap:
        assert set(labels.remap.values()) == set(labels.structures.values())
    for ids in labels.regions.values():
        assert set(ids) <= set(labels.structures.values())
    if labels.targets == "regions":
        painted = paint_order(tuple(labels.regions.values()))
        assert sorted(label for _, label in painted) == sorted(labels.structures.values())


def test_splits_can_be_made(card: Card) -> None:
    rows = rows_of(card)
    for name in card.splits:
        rule = card.split(name)
        for fold in range(card.n_folds(name)):
            split = make_split(rows, rule, fold, card.id)
            parts = [set(split[part]) for part in ("train", "val", "test")]
            assert all(parts)
            assert not parts[0] & parts[1]
            assert (parts[1] == parts[2]) == rule.selects_on_test
            assert rule.selects_on_test or not parts[2] & (parts[0] | parts[1])
            if not rule.exclude and rule.kind != "folders" and card.id != "acdc":
                assert len(set.union(*parts)) == len(rows)


def test_the_default_split_has_a_test_set_of_its_own(card: Card) -> None:
    assert not card.split("default").selects_on_test


def test_presets_fit_the_images(card: Card) -> None:
    for preset in card.presets.values():
        assert preset.preparation.model_dump() == preset.model_dump(exclude={"patch"})
        assert len(preset.intensities(len(card.channels))) == len(card.channels)
        if not card.has_spacing:
            assert preset.spacing is None and len(preset.patch) == 2
    if card.layout.channels:
        assert len(card.layout.channels) + 1 == len(card.channels)


def test_files_have_addresses_and_checksums(card: Card) -> None:
    if card.access.mode == "open":
        assert card.files and card.access.steps
        assert all(file.urls for file in card.files)
    if card.access.mode == "manual":
        assert card.access.steps
    assert (card.access.mode == "derived") == (card.source.derived_from is not None)
    for file in card.files:
        if file.checksum_status != "record_on_first_use":
            assert file.md5 or file.sha256
        for one in file.expanded():
            assert all("{" not in text for text in (one.name, *one.urls))
        if file.cases:
            assert expand_ids(file.cases) == known_ids(card)


def test_what_a_card_says_of_others(card: Card) -> None:
    cards = set(card_files())
    for other in cards & set(card.overlaps):
        assert card.id in load_card(other).overlaps, f"{other} does not name {card.id}"
    assert card.id not in card.overlaps
    if card.source.derived_from:
        assert card.source.derived_from in set(card.overlaps) & cards
    for other in card.access.alternatives:
        assert load_card(other).access.mode == "open"


def test_metrics_and_evidence_name_what_there_is(card: Card) -> None:
    for protocol in card.metrics.protocols:
        get_protocol(protocol)
        assert not get_protocol(protocol).internal
    tolerances = card.metrics.tolerances_of(card.labels.scored)
    assert tolerances.keys() == card.labels.scored.keys()
    assert set(card.metrics.tolerances_mm) <= set(tolerances)
    if card.metrics.tolerances_mm or card.metrics.tolerance_mm != DEFAULT_TOLERANCE_MM:
        assert "metrics" in card.evidence, "say whose tolerances these are, and how sure that is"
    for part in card.evidence:
        key, _, name = part.partition(".")
        assert key in Card.model_fields
        assert not name or name in getattr(card, key)


def test_published_lists() -> None:
    """What the papers' lists are known to count, and where they meet."""
    btcv, synapse = load_card("btcv"), load_card("synapse_multiorgan")
    paper = {name: make_split(rows_of(btcv), btcv.split(name), 0, "btcv") for name in btcv.splits}
    counts = {name: (len(split["train"]), len(split["val"])) for name, split in paper.items()}
    assert counts["monai_24_6"] == (24, 6) and counts["transunet_18_12"] == (18, 12)
    assert paper["default"]["test"] == paper["monai_24_6"]["test"]
    shared = set(paper["monai_24_6"]["val"]) & set(paper["transunet_18_12"]["test"])
    assert shared == {"0035", "0036", "0038"}
    for name in ("default", "transunet_18_12"):
        split = make_split(rows_of(synapse), synapse.split(name), 0, "synapse")
        assert split["test"] == paper["transunet_18_12"]["test"]
    for name, rule, sizes in (
        ("brats23_gli", "acf_1001_250", (1001, 250)),
        ("kits23", "acf_392_97", (392, 97)),
        ("flare22", "voco_40_10", (40, 10)),
        ("flare22", "mmseg_kd_40_10", (40, 10)),
        ("kits19", "cleaned_kfold5", None),
        ("lits17", "default", None),
    ):
        card = load_card(name)
        split = make_split(rows_of(card), card.split(rule), 0, name)
        used = {case for part in ("train", "val", "test") for case in split[part]}
        if sizes:
            assert (len(split["train"]), len(split["val"])) == sizes
        else:
            assert used == set(known_ids(card)) - set(expand_ids(card.split(rule).exclude))


def test_synapse_asks_btcv_by_name() -> None:
    btcv, synapse = load_card("btcv").labels, load_card("synapse_multiorgan").labels
    for old, new in synapse.remap.items():
        assert btcv.raw[old] == synapse.raw[new]


def test_the_page_of_data_sets_has_a_row_and_a_section_for_each_card(tmp_path: Path) -> None:
    *_, page = write_pages(tmp_path)
    assert page == tmp_path / "datasets.md"
    text = page.read_text()
    table, *sections = text.split("\n## ")
    assert len(sections) == len(card_files())
    for section in sections:
        card = load_card(section.split("\n")[0])
        row = next(line for line in table.splitlines() if line.startswith(f"| [{card.id}]("))
        assert row.count(" | ") == 8
        for cell in (card.modality, str(n_cases(card)), card.access.mode, ", ".join(card.presets)):
            assert f"| {cell} |" in row
        assert card.licence.spdx in row
        for fact in (*card.quirks, *card.labels.scored, *card.evidence):
            assert fact in section
        for name, rule in card.splits.items():
            line = next(line for line in section.splitlines() if line.startswith(f"| `{name}` |"))
            assert rule.kind in line
            assert ("selects on the test cases" in line) == rule.selects_on_test


FILES = {"kind": "files", "find": r"(?P<case>\d+)\.nii", "label": "{case}_seg.nii"}


def write(folder: Path, changes: dict[str, Any]) -> Path:
    (folder / "mine.yaml").write_text(yaml.safe_dump({**MINE, **changes}))
    return folder


def test_a_card_of_ones_own_comes_beside_the_shipped_ones(tmp_path: Path) -> None:
    card = load_card("mine", [write(tmp_path, {})])
    assert card.labels.structures == {"liver": 1, "spleen": 2}
    assert card_files([tmp_path]).keys() == card_files().keys() | {"mine"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "yours"}, r"id 'yours' must equal the file's name 'mine'"),
        ({"titel": "x"}, r"unknown key 'titel', did you mean 'title'"),
        ({"schema_version": 2}, r"schema_version: Input should be 1"),
        ({"labels": {"raw": {0: "background", 2: "liver"}}}, r"run from 0 without gaps"),
        ({"labels": {"raw": {0: "a", 1: "liver", 2: "liver"}}}, r"two label ids share a name"),
        (
            {"labels": {**MINE["labels"], "may_be_absent": ["livr"]}},
            r"may_be_absent: did you mean 'liver'",
        ),
        ({"access": {"mode": "generate"}}, r"'generate' and a 'generator' go together"),
        ({"layout": {"subject_pattern": "p.+"}}, r"needs one group"),
        ({"layout": {"case_pattern": "("}}, r"is no regular expression"),
        ({"layout": {"roots": ["../up"]}}, r"root '../up' must lie below"),
        ({"layout": {"roots": ["/data"]}}, r"root '/data' must lie below"),
        (
            {"layout": {**FILES, "label": "{id}.nii"}},
            r"no group \['id'\], only \['case'\]",
        ),
        ({"layout": {**FILES, "label": "{}.nii"}}, r"find has no group \[''\]"),
        ({"layout": {**FILES, "label": "{case.nii"}}, r"template '{case.nii': expected '}'"),
        ({"layout": {**FILES, "label": None}}, r"needs find, and either label or masks"),
        ({"layout": {"label": "a"}}, r"label and masks are for kind: files"),
        ({"splits": {"other": MINE["splits"]["default"]}}, r"splits needs an entry 'default'"),
        ({"splits": {"default": {"kind": "kfold", "n": 2}}}, r"greater than or equal to 3"),
        ({"splits": {**MINE["splits"], "a/b": MINE["splits"]["default"]}}, r"splits.a/b"),
        (
            {"presets": {"default": {**MINE["presets"]["default"], "patch": [16, 0, 16]}}},
            r"patch sides must be at least 1 voxel",
        ),
        (
            {"presets": {"default": {**MINE["presets"]["default"], "spacing": [1, 1, 0]}}},
            r"spacing must be positive",
        ),
        (
            {"presets": {"default": {**MINE["presets"]["default"], "spacin": None}}},
            r"did you mean 'spacing'",
        ),
        (
            {"presets": {"default": {**MINE["presets"]["default"], "orientation": "XYZ"}}},
            r"orientation: String should match",
        ),
    ],
)
def test_errors_name_the_file_and_the_key(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_card("mine", [write(tmp_path, changes)])
    assert "mine.yaml" in str(caught.value)


def test_broken_yaml_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("id: [mine\n")
    with pytest.raises(ConfigError, match=r"mine.yaml: not readable as YAML"):
        load_card("mine", [tmp_path])
