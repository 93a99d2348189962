"""``kdpipe new dataset`` writes a card that loads and plans a study, with reasons."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

from kdpipe import cli
from kdpipe.cards import Card, load_card
from kdpipe.commands.new_dataset import new_dataset
from kdpipe.config import load_study
from kdpipe.errors import ConfigError, DataError
from kdpipe.plan import Plan
from kdpipe.runs import run_files


def make(folder: Path, ids: tuple[int, ...], n: int = 6, **description: Any) -> Path:
    """Volumes with a cube of each label id; the last lacks the last id."""
    for case in range(n):
        image = np.random.default_rng(case).integers(1, 500, (20, 24, 18)).astype(np.int16)
        label = np.zeros(image.shape, np.uint8)
        for number, index in enumerate(ids[: -1 if case == n - 1 else None]):
            label[4 * number : 4 * number + 4, 2:9, 3:9] = index
        for part, array in (("imagesTr", image), ("labelsTr", label)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            file = folder / part / f"case_{case}.nii.gz"
            nib.save(nib.Nifti1Image(array, np.diag([1.0, 1, 2, 1])), file)
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def plan(name: str, cards: Path, folder: Path, **use: Any) -> Plan:
    study = Plan(
        load_study(
            {
                "cards": [str(cards)],
                "datasets": [{name: use}],
                "data_source": {name: str(folder)},
                "teachers": ["unet"],
                "students": ["unet_tiny"],
                "methods": ["kd"],
            }
        )
    )
    assert run_files(study)
    return study


def card_of(folder: Path, cards: Path) -> Card:
    new_dataset(folder, "mine", cards)
    return load_card("mine", [cards])


def test_a_card_loads_and_says_why(tmp_path: Path) -> None:
    folder = make(
        tmp_path / "Dataset007_Liver", (1, 2), name="Liver: all", licence="CC0", reference="Doe",
        modality={"0": "MRI"}, labels={"0": "background", "1": "liver", "2": "no"},
    )  # fmt: skip
    text = new_dataset(folder, out=tmp_path / "cards")
    assert "6 cases (layout msd) of 20x24x18 voxels; MRI (MR); 2 structures" in text
    assert f"'data_source={{dataset007_liver: {folder}}}'" in text
    card = load_card("dataset007_liver", [tmp_path / "cards"])
    assert card.title == "Liver: all"
    assert card.licence.note == "CC0"
    assert card.source.citation == ("Doe",)
    assert card.labels.raw == {0: "background", 1: "liver", 2: "no"}, "no is a name, not false"
    assert card.labels.may_be_absent == ("no",)
    assert card.preset("default").spacing == (1.0, 1.0, 2.0)
    assert card.preset("slices").patch == (16, 16)
    assert card.split("default").stratify is True
    written = (tmp_path / "cards/dataset007_liver.yaml").read_text()
    assert "# mm; that of all cases" in written
    assert "# of 6 cases that were read, no in 5" in written
    assert max(map(len, written.splitlines())) <= 100
    plan("dataset007_liver", tmp_path / "cards", folder).check_sources()
    plan("dataset007_liver", tmp_path / "cards", folder, preset="slices")


def test_ids_with_gaps_are_remapped(tmp_path: Path) -> None:
    labels = {"background": 0, "liver": 2, "spleen": 7}
    card = card_of(make(tmp_path / "d", (2, 7), labels=labels), tmp_path / "cards")
    assert card.labels.raw == {0: "background", 1: "liver", 2: "spleen"}
    assert card.labels.remap == {0: 0, 2: 1, 7: 2}
    assert card.labels.may_be_absent == ("spleen",)


def test_regions_of_nnunet(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 3], "core": [3]}
    card = card_of(make(tmp_path / "d", (1, 3), labels=labels), tmp_path / "cards")
    assert card.labels.targets == "regions"
    assert card.labels.regions == {"whole": (1, 2), "core": (2,)}
    assert card.labels.remap == {0: 0, 1: 1, 3: 2}


def test_without_names_the_ids_that_were_seen_are_named(tmp_path: Path) -> None:
    card = card_of(make(tmp_path / "d", (1, 2)), tmp_path / "cards")
    assert card.labels.raw == {0: "background", 1: "label_1", 2: "label_2"}
    assert card.channels == ("image",)
    assert card.modality == "other"


def test_names_are_free_and_legal(tmp_path: Path) -> None:
    folder = make(tmp_path / "d", (1, 2))
    new_dataset(folder, "mine", tmp_path)
    before = (tmp_path / "mine.yaml").read_text()
    for name, message in (
        ("mine", "mine.yaml exists already"),
        ("phantom_ct", "phantom_ct.yaml exists already: choose another --name"),
        ("My-Data", "'My-Data' cannot name a data set"),
    ):
        with pytest.raises(ConfigError, match=message):
            new_dataset(folder, name, tmp_path)
    assert (tmp_path / "mine.yaml").read_text() == before


def test_what_no_card_can_hold_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    folder = make(tmp_path / "d", (1, 2), labels={"0": "background", "1": "organ", "2": "organ"})
    with pytest.raises(DataError, match="no card can be written: labels: two label ids share"):
        new_dataset(folder, "mine", tmp_path / "cards")
    assert not (tmp_path / "cards").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "d", (1, 2))
    command = ["new", "dataset", str(folder), "--name", "mine", "--out", str(tmp_path / "cards")]
    assert cli.main(command) == 0
    assert "snakemake -n --config" in capsys.readouterr().out
    assert cli.main(command) == 2
    assert "kdpipe new: error: " in capsys.readouterr().err
    assert cli.main([*command[:2], str(tmp_path), "--name", "other"]) == 3


def test_real_volumes_of_thick_slices(chaos: Path, tmp_path: Path) -> None:
    card = card_of(chaos, tmp_path / "cards")
    assert card.labels.structures == {
        "liver": 1, "right_kidney": 2, "left_kidney": 3, "spleen": 4,
    }  # fmt: skip
    preset = card.preset("default")
    assert preset.spacing == (1.25, 1.25, 7.7)
    assert preset.patch == (160, 160, 32)
    assert card.preset("slices").spacing == (1.25, 1.25, None)
    assert card.n_folds("default") == 5
    assert len(list(plan("mine", tmp_path / "cards", chaos).folds())) == 5


def test_real_pictures(kits_slices: Path, tmp_path: Path) -> None:
    card = card_of(kits_slices, tmp_path / "cards")
    assert card.has_spacing is False
    assert card.labels.may_be_absent == "all"
    assert card.preset("default").patch == (256, 256)
    assert card.preset("default").orientation is None
    assert "slices" not in card.presets
    plan("mine", tmp_path / "cards", kits_slices)


def test_real_volumes_of_equal_sides(hippocampus: Path, tmp_path: Path) -> None:
    card = card_of(hippocampus, tmp_path / "cards")
    assert card.split("default").kind == "fractions"
    assert card.preset("default").patch == (32, 48, 32)
    assert card.preset("default").spacing == (1.0, 1.0, 1.0)
    raw = yaml.safe_load((tmp_path / "cards/mine.yaml").read_text())
    assert raw["presets"]["default"]["intensity"] == {"kind": "zscore", "nonzero": True}


def test_the_examples_of_the_guide_are_legal(root: Path) -> None:
    text = (root / "docs/adding_a_dataset.md").read_text()
    card, layout = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    content = yaml.safe_load(card)
    Card.model_validate(content)
    content |= yaml.safe_load(layout)
    splits = re.findall(r"\| `(\w+)` \| `(\{.*?\})` \|", text)
    assert len(splits) == 8
    content["splits"] |= {kind: {"kind": kind} | yaml.safe_load(rule) for kind, rule in splits}
    regions = re.search(r"    labels:\n(?:      .*\n)+", text)
    assert regions is not None
    content |= yaml.safe_load(textwrap.dedent(regions[0]))
    given = Card.model_validate(content)
    assert given.labels.scored == {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
