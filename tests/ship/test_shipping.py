"""From trained cells to a student that is handed out, with the real commands; the card is run."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from toy import Toy

from kdpipe.cli import main

pytestmark = pytest.mark.slow

FOLD = "results/toy/default/fold0"
SHIP = f"{FOLD}/ship/toy"
PREPARED = "data/prepared/toy/default"
SPLIT = f"{FOLD}/split.json"
TEACHER = f"{FOLD}/teachers/unet_tiny/seed0"
TABLES = "results/tables/toy"


def run(*commands: str) -> None:
    for command in commands:
        assert main(command.split()) == 0, command


@pytest.fixture(scope="module")
def study(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy study up to its model card; the teacher is of the student's network and weights."""
    pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("shipping") / "study"
    shutil.copytree(toy.folder, folder)
    student = toy.model.parent.relative_to(toy.folder)
    before = os.getcwd()
    os.chdir(folder)
    try:
        for name in ("model.pt", "model.json", "train.csv"):
            shutil.copy(student / name, TEACHER)
        settings = json.loads(Path(SHIP, "run.json").read_text())
        Path(SHIP, "run.json").write_text(json.dumps(settings | {"forms": ["onnx"]}))
        for cell in (student, Path(TEACHER)):
            scored = f"--run results/toy/evaluate/run.json --cell {cell}/run.json"
            run(
                f"predict --run results/toy/predict/run.json --model {cell}/model.pt"
                f" --prepared {PREPARED} --split {SPLIT} --out {cell}/predictions",
                f"evaluate {scored} --prediction {cell}/predictions --split {SPLIT}"
                f" --manifest data/raw/toy/manifest.tsv --out {cell}/metrics.csv",
            )
        for role in ("student", "teacher"):
            profile = f"results/toy/profiles/{role}s/unet_tiny"
            run(f"profile --run {profile}/run.json --out {profile}/profile.json")
        run(
            f"tables --run {TABLES}/run.json --out {TABLES}",
            f"compare --run {TABLES}/run.json --tables {TABLES}",
            f"choose-student --run {SHIP}/choice/run.json --out {SHIP}/choice.json",
            f"export --run {SHIP}/run.json --model {student}/model.pt --prepared {PREPARED}"
            f" --split {SPLIT} --out {SHIP}/export",
            f"model-card --run {SHIP}/card/run.json --choice {SHIP}/choice.json"
            f" --export {SHIP}/export --split {SPLIT} --manifest data/raw/toy/manifest.tsv"
            f" --scores {TABLES}/scores.csv --comparisons {TABLES}/comparisons.csv"
            f" --cost {SHIP}/cost.json --out {SHIP}/MODEL_CARD.md",
        )
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def card(study: Path) -> str:
    return (study / SHIP / "MODEL_CARD.md").read_text()


def blocks(card: str) -> list[str]:
    """What is indented as code."""
    found = re.findall(r"(?:^    .*\n)+", card, re.M)
    return [re.sub("^    ", "", block, flags=re.M) for block in found]


def test_what_is_handed_out(study: Path, card: str) -> None:
    names = {file.name for file in (study / SHIP / "export").iterdir()}
    assert names == {"model.pt", "model.onnx", "description.json", "parity.json"}
    cost = json.loads((study / SHIP / "cost.json").read_text())
    assert cost["ratios"]["parameters"] == 1.0
    onnx = study / SHIP / "export/model.onnx"
    assert cost["forms"]["model.onnx"]["bytes"] == onnx.stat().st_size
    assert cost["forms"]["model.onnx"]["largest_difference"] <= 1e-4
    assert "The study has no distillation method" in card
    assert "1 test case of one data set" in card


def test_the_program_in_the_card_runs(
    study: Path, card: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (program,) = (block for block in blocks(card) if "InferenceSession" in block)
    monkeypatch.chdir(study / SHIP)
    values: dict[str, object] = {}
    exec(program, values)
    logits, about = values["logits"], values["about"]
    assert isinstance(logits, np.ndarray) and logits.shape == (1, 4, 16, 16, 16)
    assert isinstance(about, dict) and about["labels"]["1"] == "liver"
    assert about["provenance"]["study"] == "toy"


def test_the_commands_in_the_card_segment_as_the_study_did(
    study: Path, card: str, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = [line for block in blocks(card) for line in block.splitlines()]
    commands = [line.partition("#")[0] for line in commands if line.startswith("kdpipe predict ")]
    assert len(commands) == 2
    (case,) = toy.cases["test"]
    (cell,) = study.glob(f"{FOLD}/students/*/*/*/seed0")
    expected = sitk.ReadImage(str(cell / "predictions" / f"{case}.nii.gz"))
    monkeypatch.chdir(study / SHIP)
    scan = study / toy.files.relative_to(toy.folder) / "imagesTr" / f"{case}.nii.gz"
    for number, command in enumerate(commands):
        given = command.removeprefix("kdpipe ").replace("SCANS", str(scan))
        run(given.replace("LABELS", str(tmp_path / str(number))))
        found = sitk.ReadImage(str(tmp_path / str(number) / f"{case}.nii.gz"))
        same = sitk.GetArrayViewFromImage(found) == sitk.GetArrayViewFromImage(expected)
        assert same.mean() > 0.9999
