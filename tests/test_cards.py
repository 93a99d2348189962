"""Cards: the shipped ones hold together, and a wrong one says what is wrong and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kdpipe.cards import card_files, load_card
from kdpipe.errors import ConfigError
from kdpipe.splits import KFoldSplit

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


@pytest.mark.parametrize("name", sorted(card_files()))
def test_shipped_cards(name: str) -> None:
    card = load_card(name)
    assert card.labels.raw[0] == "background"
    for split, rule in card.splits.items():
        assert card.n_folds(split) == (rule.n if isinstance(rule, KFoldSplit) else 1)
    for preset in card.presets.values():
        assert preset.preparation.model_dump() == preset.model_dump(exclude={"patch"})
    if card.access.mode == "open":
        assert card.files
        assert card.access.steps
        assert all(file.sha256 and file.urls for file in card.files)


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
