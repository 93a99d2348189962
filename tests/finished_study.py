"""A study whose stages have all left their files, without a single training: for the cards."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from kdpipe.cards import BUILTIN_CARDS
from kdpipe.cli import main
from kdpipe.config import load_study
from kdpipe.plan import Cell, Plan
from kdpipe.provenance import canonical
from kdpipe.report.tables import write_tables
from kdpipe.runs import run_files
from kdpipe.stats.write import write_comparisons

CONFIG: dict[str, Any] = {
    "study": "small",
    "datasets": ["phantom_ct"],
    "teachers": ["segresnet"],
    "students": ["unet_tiny"],
    "methods": ["none", "kd"],
    "seeds": [0, 1],
    "statistics": {"resamples": 500},
}
COSTS = {"segresnet": (400_000, 80.0, 300.0), "unet_tiny": (30_000, 10.0, 60.0)}
CASES = {
    "train": ["t1", "t2", "t3"],
    "val": ["v1", "v2"],
    "test": [f"c{number}" for number in range(8)],
}
METRICS = {"dice": "fraction", "hd95_pooled": "mm", "nsd": "fraction"}
#: form -> its file
_EXPORTED = {"onnx": "model.onnx", "int8": "model.int8.onnx"}


class Finished:
    """The files of a study in a folder, and its settings.

    Attributes:
        folder: where commands have to run, as paths are relative.
        plan: of the study.
        runs: path -> content of each ``run.json``.
        ship: folder of what is handed out.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any] | None = None,
        dice: Mapping[str, float] | None = None,
        card: Mapping[str, Any] | None = None,
    ):
        """Write the study.

        Args:
            folder: to write to.
            config: keys that replace those of `CONFIG`.
            dice: method -> validation Dice of seed 0; each further seed has 0.01 less.
            card: keys that replace those of the card of ``phantom_ct``.
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        content = CONFIG | dict(config or {})
        if card is not None:
            content |= {"cards": [str(_write_card(folder, card))]}
        self.plan = Plan(load_study(content))
        self.runs = run_files(self.plan)
        self.dice = {"none": 0.80, "kd": 0.85, "": 0.90} | dict(dice or {})
        ((_, split, fold),) = list(self.plan.folds())
        keys = {"dataset": "phantom_ct", "split": split, "fold": fold}
        self.ship = self.plan.paths.ship(self.plan.study.study, **keys)
        self.fold = self.plan.paths.fold(**keys)
        with self.within():
            self._write()

    @contextmanager
    def within(self) -> Iterator[None]:
        """Work in the folder."""
        before = os.getcwd()
        os.chdir(self.folder)
        try:
            yield
        finally:
            os.chdir(before)

    def read(self, name: str) -> dict[str, Any]:
        """Read a JSON file of what is handed out."""
        found: dict[str, Any] = json.loads((self.folder / self.ship / name).read_text())
        return found

    def edit(self, path: str, **change: Any) -> None:
        """Replace keys of a JSON file."""
        file = self.folder / path
        file.write_text(json.dumps(json.loads(file.read_text()) | change))

    def cards(self) -> tuple[str, dict[str, Any]]:
        """Choose a student and write its cards; return the model card and ``cost.json``."""
        run, out = f"{self.ship}/choice/run.json", f"{self.ship}/choice.json"
        with self.within():
            assert main(["choose-student", "--run", run, "--out", out]) == 0
            assert main(self.card_arguments()) == 0
        return (self.folder / self.ship / "MODEL_CARD.md").read_text(), self.read("cost.json")

    def change_scores(self, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        """Replace the study's table of scores."""
        file = self.folder / self.plan.paths.tables(self.plan.study.study) / "scores.csv"
        scores = change(pd.read_csv(file, keep_default_na=False))
        scores.to_csv(file, index=False, na_rep="nan")

    def card_arguments(self) -> list[str]:
        """The command line of the cards, as the rule gives it."""
        tables = self.plan.paths.tables(self.plan.study.study)
        manifest = f"{self.plan.paths.raw('phantom_ct')}/manifest.tsv"
        text = (
            f"model-card --run {self.ship}/card/run.json --choice {self.ship}/choice.json"
            f" --export {self.ship}/export --split {self.fold}/split.json --manifest {manifest}"
            f" --scores {tables}/scores.csv --comparisons {tables}/comparisons.csv"
            f" --cost {self.ship}/cost.json --out {self.ship}/MODEL_CARD.md"
        )
        return text.split()

    def _write(self) -> None:
        for path, run in self.runs.items():
            _write(path, canonical(run))
        for number, (folder, cell) in enumerate(self.plan.cells.items()):
            self._write_cell(folder, cell, number)
        for folder, cell in self.plan.profiles.items():
            parameters, latency, memory = COSTS.get(cell.network.label, (1000, 1.0, 1.0))
            on_cpu = {"latency_ms": latency, "peak_mb": memory, "threads": 1, "processor": "test"}
            costs = {"parameters": parameters, "macs": 100 * parameters, "cpu": on_cpu}
            _write(f"{folder}/profile.json", json.dumps(costs | {"cuda": None}))
        _write(f"{self.fold}/split.json", json.dumps(CASES | {"sha256": "5" * 64}))
        _write(f"{self.plan.paths.raw('phantom_ct')}/manifest.tsv", "case\n")
        self._write_export()
        tables = Path(self.plan.paths.tables(self.plan.study.study))
        study = self.runs[f"{tables}/run.json"]
        write_tables(study, tables)
        write_comparisons(study, tables)

    def _write_cell(self, folder: str, cell: Cell, number: int) -> None:
        dice = self.dice[cell.method.name if cell.method else ""] - 0.01 * cell.seed
        tuning = {"trial": 1, "learning_rate": 0.01} if cell.tuned else {}
        facts = {
            "validation_dice": dice + (0.02 if cell.tuned else 0),
            "weights_sha256": f"{number:064d}",
            "split_sha256": "5" * 64,
            "training_sha256": "7" * 64,
            "code": "c0de",
            "seconds": 12.0,
            "best_epoch": 3,
            "environment": {"torch": "2.0"},
            **({"tuning": tuning} if tuning else {}),
        }
        _write(f"{folder}/model.json", json.dumps(facts))
        _write(f"{folder}/model.pt", "w" * (4000 if cell.role == "teacher" else 1000))
        draw = np.random.default_rng(number)
        rows = [
            {**cell.keys, "case": case, "structure": structure, "protocol": protocol["name"]}
            | _score(metric, dice, draw)
            for case in CASES["test"]
            for structure in self.plan.cards["phantom_ct"].labels.scored
            for protocol in self._protocols()
            for metric in METRICS
        ]
        pd.DataFrame(rows).to_csv(f"{folder}/metrics.csv", index=False, na_rep="nan")

    def _protocols(self) -> list[dict[str, Any]]:
        return [{"name": self.plan.study.evaluation.protocols[0]}]

    def _write_export(self) -> None:
        folder = f"{self.ship}/export"
        _write(f"{folder}/model.pt", "w" * 1000)
        measured = {
            "latency_ms": 4.0,
            "torch_latency_ms": 9.0,
            "largest_difference": 2e-6,
            "same_labels": 1.0,
            "dice": 0.8,
            "dice_loss": 0.0,
        }
        forms = {}
        for form, file in _EXPORTED.items():
            _write(f"{folder}/{file}", "o" * 1500)
            forms[form] = {"file": file, "bytes": 1500, **measured}
        parity = {
            "reference": {
                "file": "model.pt",
                "bytes": 1000,
                "cases": dict.fromkeys(CASES["val"], 0.8),
                "windows": 12,
            },
            "limits": {"largest_difference": 1e-4, "same_labels": 0.9999, "without": ["int8"]},
            "forms": forms,
            "environment": {"torch": "2.0"},
        }
        _write(f"{folder}/parity.json", json.dumps(parity))


def _score(metric: str, dice: float, draw: np.random.Generator) -> dict[str, Any]:
    value = dice - abs(draw.normal(0, 0.1))
    value = value if METRICS[metric] == "fraction" else 20 * (1 - value)
    return {"metric": metric, "value": value, "unit": METRICS[metric], "status": "ok"}


def _write_card(folder: Path, change: Mapping[str, Any]) -> Path:
    card = yaml.safe_load((BUILTIN_CARDS / "phantom_ct.yaml").read_text())
    cards = folder / "cards"
    cards.mkdir()
    (cards / "phantom_ct.yaml").write_text(yaml.safe_dump(card | dict(change), sort_keys=False))
    return cards


def _write(path: str, text: str) -> None:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
