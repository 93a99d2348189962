"""From a study to its cells: what is trained, where it lies, and the ``run.json`` of each stage.

A ``run.json`` holds all settings that its stage depends on and nothing else, so that a change of
the configuration reruns exactly the stages that it touches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdpipe import discover
from kdpipe.composition import check_method, is_reading, method_names, needs_teacher
from kdpipe.config import DatasetUse, Entry, Study
from kdpipe.errors import ConfigError
from kdpipe.paths import NO_TEACHER, Paths

#: the modules in which each stage starts; catalogue entries are added by the cell
STAGE_MODULES = {
    "fetch": ("kdpipe.data.fetch",),
    "prepare": ("kdpipe.data.prepare",),
    "split": ("kdpipe.data.split",),
    "train": ("kdpipe.engine.train",),
    "predict": ("kdpipe.infer.predict",),
    "evaluate": ("kdpipe.metrics.folders",),
    "tables": ("kdpipe.report.tables",),
}


@dataclass(frozen=True)
class Cell:
    """One trained network of the grid. `student` and `method` are None for a teacher."""

    dataset: DatasetUse
    split: str
    fold: int
    seed: int
    teacher: Entry | None
    student: Entry | None = None
    method: Entry | None = None

    @property
    def network(self) -> Entry:
        """The network that is trained here."""
        network = self.student or self.teacher
        assert network is not None
        return network

    @property
    def role(self) -> str:
        """``teacher`` or ``student``."""
        return "student" if self.student else "teacher"

    @property
    def keys(self) -> dict[str, Any]:
        """The columns that identify this cell in every table."""
        return {
            "dataset": self.dataset.name,
            "split": self.split,
            "fold": self.fold,
            "role": self.role,
            "teacher": self.teacher.label if self.teacher else NO_TEACHER,
            "student": self.student.label if self.student else "",
            "method": self.method.label if self.method else "",
            "seed": self.seed,
        }


class Plan:
    """All cells of a study, with their paths, settings and code."""

    def __init__(self, study: Study):
        self.study = study
        self.paths = Paths(study.data_root, study.results_root)
        self.cards = {use.name: study.card(use.name) for use in study.datasets}
        self.cells = {self.folder(cell): cell for cell in self._all_cells()}
        self._uses = {use.name: use for use in study.datasets}

    # cells

    def _all_cells(self) -> Iterator[Cell]:
        for use, split, fold in self.folds():
            for network in self.study.teachers:
                yield Cell(use, split, fold, self.study.teacher_seed, network)
            for student in self.study.students:
                for method in self.study.methods:
                    for teacher in self._teachers_of(method):
                        for seed in self.study.seeds:
                            yield Cell(use, split, fold, seed, teacher, student, method)

    def folds(self) -> Iterator[tuple[DatasetUse, str, int]]:
        """Yield every (data set, split, fold) of the study."""
        for use in self.study.datasets:
            for split in use.splits:
                for fold in self.study.folds(use, split):
                    yield use, split, fold

    def _teachers_of(self, method: Entry) -> tuple[Entry | None, ...]:
        return self.study.teachers if needs_teacher(method.name, method.params) else (None,)

    def folder(self, cell: Cell) -> str:
        """Folder of a cell."""
        keys = {key: value for key, value in cell.keys.items() if key != "role"}
        return self.paths.student(**keys) if cell.student else self.paths.teacher(**keys)

    def teacher_folder(self, cell: Cell) -> str | None:
        """Folder of the teacher that a student learns from."""
        if cell.student is None or cell.teacher is None:
            return None
        seed = self.study.teacher_seed
        return self.folder(Cell(cell.dataset, cell.split, cell.fold, seed, cell.teacher))

    def prepared(self, cell: Cell) -> str:
        """Folder of the prepared images that a cell is trained on."""
        return self.paths.prepared(cell.dataset.name, cell.dataset.preset)

    def prepared_of(self, dataset: str) -> str:
        """Folder of the prepared images of a data set, by its name."""
        return self.paths.prepared(dataset, self._uses[dataset].preset)

    def source_files(self, dataset: str) -> list[str]:
        """Files of a data set's local source folder; empty for other sources."""
        if dataset not in self.study.data_source:
            return []
        folder = Path(self.study.data_source[dataset]).expanduser()
        found = [folder / "dataset.json", *folder.glob("imagesTr/*"), *folder.glob("labelsTr/*")]
        return sorted(str(f) for f in found if f.is_file() and not f.name.startswith("."))

    def check_sources(self) -> None:
        """Raise ConfigError if a local source is not there.

        Checked before the graph is built: a disk that is not mounted must not look like data that
        have changed, as Snakemake would delete what was made from them.
        """
        for dataset in self.cards:
            folder = self.study.data_source.get(dataset)
            if folder and not (Path(folder).expanduser() / "dataset.json").is_file():
                raise ConfigError(
                    f"data_source.{dataset}: {folder} holds no dataset.json; name the folder with "
                    "dataset.json, imagesTr and labelsTr, and see that its disk is mounted"
                )

    # code

    def stage_modules(self, stage: str, cell: Cell | None = None) -> tuple[str, ...]:
        """Modules whose code decides the result of `stage` for `cell`."""
        modules: tuple[str, ...] = STAGE_MODULES[stage]
        if cell is not None:
            networks = {entry.name for entry in (cell.teacher, cell.student) if entry}
            modules += tuple(f"kdpipe.nets.{name}" for name in sorted(networks))
        if cell is not None and stage == "train":
            method = cell.method or Entry(name="none")
            used = method_names(method.name, method.params)
            modules += tuple(f"kdpipe.methods.{name}" for name in used)
        return modules

    # run.json

    def run_files(self) -> dict[str, dict[str, Any]]:
        """Return path -> content of every ``run.json`` of the study."""
        runs: dict[str, dict[str, Any]] = {}
        for use in self.study.datasets:
            runs[self.paths.raw(use.name)] = self._fetch_run(use)
            runs[self.paths.prepared(use.name, use.preset)] = self._prepare_run(use)
            runs[self.paths.stage(use.name, "predict")] = self._predict_run()
            runs[self.paths.stage(use.name, "evaluate")] = self._evaluate_run(use)
        for use, split, fold in self.folds():
            folder = self.paths.fold(dataset=use.name, split=split, fold=fold)
            runs[folder] = self._split_run(use, split, fold)
        for folder, cell in self.cells.items():
            runs[folder] = self._train_run(cell)
        runs[self.paths.tables(self.study.study)] = self._tables_run()
        return {f"{folder}/run.json": run for folder, run in runs.items()}

    def _fetch_run(self, use: DatasetUse) -> dict[str, Any]:
        card = self.cards[use.name]
        needed = {"id", "channels", "access", "generator", "files", "layout"}
        run = card.model_dump(mode="json", include=needed)
        if card.generator is not None:  # the others do not depend on what labels are called
            run["structures"] = card.labels.structures
        return run | {"source": self.study.data_source.get(use.name)}

    def _prepare_run(self, use: DatasetUse) -> dict[str, Any]:
        """Labels go by their ids: a new name of a structure changes no prepared image."""
        card = self.cards[use.name]
        absent = card.labels.may_be_absent
        ids = card.labels.structures
        return {
            "dataset": use.name,
            "channels": list(card.channels),
            "labels": {
                "raw": {
                    index: f"label_{index}" if index else "background" for index in card.labels.raw
                },
                "may_be_absent": absent if absent == "all" else [f"label_{ids[n]}" for n in absent],
            },
            "preset": card.preset(use.preset).preparation.model_dump(mode="json"),
        }

    def _split_run(self, use: DatasetUse, split: str, fold: int) -> dict[str, Any]:
        rule = self.cards[use.name].split(split).model_dump(mode="json")
        return {"dataset": use.name, "split": split, "fold": fold, "rule": rule}

    def _train_run(self, cell: Cell) -> dict[str, Any]:
        card = self.cards[cell.dataset.name]
        method = cell.method or Entry(name="none")
        params = discover.check_params("nets", cell.network.name, cell.network.params)
        return {
            "cell": cell.keys,
            "network": {
                "name": cell.network.name,
                "params": params,
                "in_channels": len(card.channels),
                "out_channels": len(card.labels.raw),
            },
            "method": {
                "name": method.name,
                "params": check_method(method.name, method.params),
            },
            "patch": list(card.preset(cell.dataset.preset).patch),
            "training": getattr(self.study.training, cell.role).model_dump(mode="json"),
        }

    def _predict_run(self) -> dict[str, Any]:
        return self.study.inference.model_dump(mode="json")

    def _evaluate_run(self, use: DatasetUse) -> dict[str, Any]:
        structures = self.cards[use.name].labels.structures
        return {
            "dataset": use.name,
            "structures": {name: [index] for name, index in structures.items()},
            "protocol": self.study.evaluation.protocol,
        }

    def _tables_run(self) -> dict[str, Any]:
        cells = [{"folder": folder, **cell.keys} for folder, cell in self.cells.items()]
        methods = self.study.methods
        readings = [method.label for method in methods if is_reading(method.name, method.params)]
        return {"study": self.study.study, "cells": cells, "readings": readings}
