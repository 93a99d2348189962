"""Whether a student trained with ``fast: true`` is as good as one in float32, on real images.

Usage: python bench/kd_dice.py --images FOLDER [--seeds 3] [--steps 700] [--cases 70] [--out DIR]

FOLDER holds the hippocampus data of the Medical Segmentation Decathlon as they are published. One
teacher, then for each seed two students that learn from it by `kd` through kdpipe's own training:
the same crops, the same initial weights, float32 and fast. Dice is the mean over the structures of
cases that none has seen, predicted in float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from kdpipe import discover
from kdpipe.cards import load_card
from kdpipe.data.folders.layout import list_files
from kdpipe.data.preparation.prepare import prepare_case
from kdpipe.data.targets import Targets
from kdpipe.engine.device import keep_freed_memory
from kdpipe.engine.jobs import Job
from kdpipe.engine.train import train
from kdpipe.engine.validate import Validator
from kdpipe.infer.model import load_model
from kdpipe.settings import Training

CARD = "msd_task04_hippocampus"
TEACHER = {"channels": (16, 32, 64), "strides": (2, 2)}
STUDENT = {"channels": (8, 16, 32), "strides": (2, 2), "residual_units": 1}


class Study:
    """The prepared cases, and trainings on them."""

    def __init__(self, images: Path, folder: Path, cases: int):
        card = load_card(CARD)
        preset = card.preset("default")
        self.patch, self.folder, self.labels = list(preset.patch), folder, card.labels.raw
        files = list_files(images, card.layout, len(card.channels))[:cases]
        self.store = folder / "cases"
        for case in files:
            if not (self.store / case.case).exists():
                prepare_case(
                    case, preset.preparation, card.labels, card.channels, self.store, "bench"
                )
        names = [case.case for case in files]
        third = max(1, cases // 3)  # seen by none; a ninth chooses the weights
        self.test, rest = names[:third], names[third:]
        self.split = {"train": rest[third // 3 :], "val": rest[: third // 3], "test": self.test}

    def train(
        self,
        name: str,
        params: dict[str, Any],
        recipe: Training,
        seed: int,
        teacher: Path | None = None,
    ) -> Path:
        """Train one network unless it is there, and return its model file."""
        folder = self.folder / name
        method = "kd" if teacher else "none"
        run = {
            "cell": {"dataset": CARD, "split": "default", "fold": 0, "seed": seed},
            "network": {
                "name": "res_unet",
                "params": discover.check_params("nets", "res_unet", params),
                "in_channels": 1,
                "out_channels": len(self.labels),
            },
            "targets": {"n_labels": len(self.labels), "regions": None},
            "method": {"name": method, "params": discover.check_params("methods", method, {})},
            "patch": self.patch,
            "training": recipe.model_dump(mode="json"),
        }  # fmt: skip
        model = folder / "model.pt"
        if not model.exists():
            split = self.split | {"sha256": "0"}
            train(Job(run, {}, split, self.store, folder / "state", model, teacher))
        return model

    def dice(self, model: Path) -> float:
        """Mean Dice of the cases that were kept apart, in float32."""
        targets = Targets(len(self.labels))
        score = Validator(self.store, self.test, targets, self.patch, 0.25, None)
        with torch.no_grad():
            return score(load_model(model).network)


def main() -> None:
    """Train, score, and print the means with their standard deviations over seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, default=700, help="of a student; the teacher has twice"
    )
    parser.add_argument("--cases", type=int, default=70)
    parser.add_argument("--out", type=Path, help="kept, and gone on with")
    options = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as temporary:
        study = Study(options.images, options.out or Path(temporary), options.cases)
        epochs = 4
        recipe: dict[str, Any] = {
            "epochs": epochs, "steps_per_epoch": options.steps // epochs, "batch_size": 2,
            "validate_every": 2, "learning_rate": 2e-3, "precision": "fp32",
            "augmentation": {"flip_axes": [0]},
        }  # fmt: skip
        longer = recipe | {"steps_per_epoch": 2 * options.steps // epochs}
        teacher = study.train("teacher", TEACHER, Training(**longer), 0)
        scores: dict[str, list[float]] = {"fp32": [], "fast": []}
        for seed in range(options.seeds):
            for way, changes in (("fp32", {}), ("fast", {"fast": True, "precision": "bf16"})):
                settings = Training(**(recipe | changes))
                model = study.train(f"{way}{seed}", STUDENT, settings, seed, teacher)
                scores[way].append(study.dice(model))
                print(way, seed, f"{100 * scores[way][-1]:.2f}", flush=True)
        print(json.dumps(summary(scores) | {"teacher": study.dice(teacher)}))


def summary(scores: dict[str, list[float]]) -> dict[str, float]:
    """Means, standard deviations over seeds, and the mean difference with its own."""
    found = {}
    for way, values in scores.items():
        found[f"{way} mean"] = statistics.mean(values)
        found[f"{way} sd"] = statistics.stdev(values)
    apart = [b - a for a, b in zip(scores["fp32"], scores["fast"], strict=True)]
    return found | {"fast - fp32": statistics.mean(apart), "sd of that": statistics.stdev(apart)}


if __name__ == "__main__":
    main()
