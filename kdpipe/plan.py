"""From a study to its cells: what is trained, from what, by which code, and where it lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdpipe import discover
from kdpipe.composition import method_names, needs_teacher
from kdpipe.config import DatasetUse, Entry, Study
from kdpipe.discover import trained_files
from kdpipe.errors import ConfigError
from kdpipe.intake import Intake
from kdpipe.nnunet_plans import read_plans
from kdpipe.paths import NO_TEACHER, Paths
from kdpipe.tuning import label

#: the modules in which each stage starts; catalogue entries are added by the cell
STAGE_MODULES = {
    "fetch": ("kdpipe.data.acquisition.fetch",),
    "prepare": ("kdpipe.data.preparation.prepare",),
    "split": ("kdpipe.data.splits.split",),
    "train": ("kdpipe.engine.train",),
    "adopt": ("kdpipe.engine.adopt",),
    "choose": ("kdpipe.engine.choose",),
    "profile": ("kdpipe.engine.profile",),
    "predict": ("kdpipe.infer.predict",),
    "evaluate": ("kdpipe.metrics.folders",),
    "tables": ("kdpipe.report.tables",),
    "compare": ("kdpipe.stats.write",),
    "figures": ("kdpipe.figures.write",),
    "overlays": ("kdpipe.overlays.write",),
    "report": ("kdpipe.report.page.write",),
    "choose_student": ("kdpipe.ship.choice",),
    "export": ("kdpipe.ship.export",),
    "model_card": ("kdpipe.ship.card.write",),
}


@dataclass(frozen=True)
class Cell:
    """One trained network of the grid. `student` and `method` are None for a teacher.

    Under a budget, `trial` > 0 is a training with other settings, and `tuned` one with the best.
    """

    dataset: DatasetUse
    split: str
    fold: int
    seed: int
    teacher: Entry | None
    student: Entry | None = None
    method: Entry | None = None
    trial: int = 0
    tuned: bool = False

    @property
    def network(self) -> Entry:
        """The network that is trained here."""
        network = self.student or self.teacher
        assert network is not None
        return network

    @property
    def adopted(self) -> bool:
        """Whether the network is trained already, and only taken over."""
        network = self.network
        return network.weights is not None or bool(trained_files(network.name, network.params))

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
            "method": label(self.method.label, self.trial, self.tuned) if self.method else "",
            "seed": self.seed,
        }


class Plan:
    """All cells of a study, with their paths, settings and code."""

    def __init__(self, study: Study):
        self.study = study
        self.paths = Paths(study.data_root, study.results_root)
        self.cards = {use.name: study.card(use.name) for use in study.datasets}
        self.intake = Intake(study, self.cards, self.paths)
        self.presets = {use.name: study.preset(use) for use in study.datasets}
        self.cells = {self.folder(cell): cell for cell in self._all_cells()}
        #: trained only to choose settings: neither predicted nor scored
        self.trials = {self.folder(cell): cell for cell in self._all_trials()}
        self.profiles = {self.profile_folder(cell): cell for cell in self.cells.values()}
        self._uses = {use.name: use for use in study.datasets}

    # cells

    def _all_cells(self) -> Iterator[Cell]:
        for use, split, fold in self.folds():
            for network in self.study.teachers:
                yield Cell(use, split, fold, self.study.teacher_seed, network)
            for student in self.study.students:
                for method in self.study.methods:
                    for teacher in self._teachers_of(method):
                        for tuned in (False, True) if self.study.budget else (False,):
                            for seed in self.study.seeds:
                                cell = Cell(use, split, fold, seed, teacher, student, method)
                                yield replace(cell, tuned=tuned)

    def _all_trials(self) -> Iterator[Cell]:
        for cell in self.cells.values():
            if cell.tuned and cell.seed == self.study.seeds[0]:
                for trial in range(1, self.study.budget):
                    yield replace(cell, tuned=False, trial=trial)

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

    # trials of a budget

    def arm(self, cell: Cell) -> str:
        """Folder of all seeds of a student; a tuned one's choice of settings lies there."""
        return self.paths.arm(**{key: cell.keys[key] for key in cell.keys if key != "role"})

    @property
    def choices(self) -> dict[str, Cell]:
        """Folder of each tuned arm -> its first cell."""
        return {self.arm(cell): cell for cell in reversed(self.cells.values()) if cell.tuned}

    def trials_of(self, cell: Cell) -> list[str]:
        """Folders of the trials that a tuned cell's settings are chosen from, trial 0 first."""
        first = replace(cell, tuned=False, seed=self.study.seeds[0])
        return [self.folder(replace(first, trial=i)) for i in range(self.study.budget)]

    def same_seed(self, cell: Cell) -> list[str]:
        """Folders of trainings that may be that of a tuned cell; the default's comes first."""
        if cell.seed == self.study.seeds[0]:
            return self.trials_of(cell)
        return [self.folder(replace(cell, tuned=False))]

    def teacher_folder(self, cell: Cell) -> str | None:
        """Folder of the teacher that a student learns from."""
        if cell.student is None or cell.teacher is None:
            return None
        seed = self.study.teacher_seed
        return self.folder(Cell(cell.dataset, cell.split, cell.fold, seed, cell.teacher))

    def profile_folder(self, cell: Cell) -> str:
        """Folder of the cost of a cell's network; cells of one network share it."""
        return self.paths.profile(cell.dataset.name, cell.role, cell.network.label)

    def prepared(self, cell: Cell) -> str:
        """Folder of the prepared images that a cell is trained on."""
        return self.prepared_of(cell.dataset.name)

    def prepared_of(self, dataset: str) -> str:
        """Folder of the prepared images of a data set, by its name."""
        return self.paths.prepared(dataset, self._uses[dataset].preset_label)

    def weight_files(self, cell: Cell) -> list[str]:
        """Files that the network of an adopted cell comes from."""
        if cell.network.weights is not None:
            return [str(Path(cell.network.weights).expanduser())]
        return self.network_files(cell)

    def network_files(self, cell: Cell) -> list[str]:
        """Files that decide a network's architecture, as one that brings its own weights has."""
        return [str(file) for file in trained_files(cell.network.name, cell.network.params)]

    def check_sources(self) -> None:
        """Raise before the graph is built if data or a trained teacher are not there.

        Raises:
            ConfigError: a folder or a teacher's file is missing, or its preparation is another.
            DataError: a data set has to be fetched by hand, or its terms to be accepted.
        """
        self.intake.check()
        for cell in self.cells.values():
            if cell.adopted:
                self._check_adopted(cell)

    def _check_adopted(self, cell: Cell) -> None:
        who = f"teachers.{cell.network.label}"
        for file in self.weight_files(cell):
            if not Path(file).is_file():  # a folder stands for itself if it has none of the files
                inside = ", ".join(discover.constant("nets", cell.network.name, "FILES", ()))
                wanted = f"a folder with {inside}" if inside else "a file"
                raise ConfigError(f"{who}: {file} is not there, or not {wanted}; mend the path")
        if cell.network.name == "nnunet":
            self._check_nnunet(cell, who)

    def _check_nnunet(self, cell: Cell, who: str) -> None:
        """A nnU-Net is of no use on images prepared, or labels numbered, in another way."""
        params = discover.check_params("nets", cell.network.name, cell.network.params)
        folder, configuration = params["path"], params["configuration"]
        for fold in params["folds"]:
            file = Path(folder).expanduser() / f"fold_{fold}" / params["checkpoint"]
            if not file.is_file():
                raise ConfigError(f"{who}: {file} is not there; mend 'folds' or 'checkpoint'")
        plans = read_plans(Path(folder).expanduser(), configuration)
        if self.presets[cell.dataset.name].preparation != plans.preset().preparation:
            raise ConfigError(
                f"{who}: this nnU-Net expects its own preparation; write "
                f"datasets: [{{{cell.dataset.name}: {{preset: {{nnunet: {folder}, "
                f"configuration: {configuration}}}}}}}]"
            )
        theirs, ours = plans.structures, list(self.cards[cell.dataset.name].labels.scored)
        if theirs != ours and sorted(theirs) == sorted(ours):
            raise ConfigError(
                f"{who}: this nnU-Net's labels are in the order {', '.join(theirs)}, those of "
                f"{cell.dataset.name} in the order {', '.join(ours)}: number them as the model's "
                "dataset.json does"
            )

    # code

    def stage_modules(self, stage: str, cell: Cell | None = None) -> tuple[str, ...]:
        """Modules whose code decides the result of `stage` for `cell`."""
        if cell is not None and cell.adopted and stage == "train":
            stage = "adopt"
        modules: tuple[str, ...] = STAGE_MODULES[stage]
        if stage == "export":
            modules += tuple(f"kdpipe.ship.forms.{form}" for form in self.study.ship.forms)
        if cell is not None and stage in ("profile", "export"):
            return modules + _network_modules(cell.network.name)
        if cell is not None:
            networks = {entry.name for entry in (cell.teacher, cell.student) if entry}
            modules += tuple(m for name in sorted(networks) for m in _network_modules(name))
        if stage == "evaluate" and self.study.evaluation.on_prepared_grid:
            modules += ("kdpipe.infer.references",)
        if cell is not None and stage == "train":
            method = cell.method or Entry(name="none")
            used = method_names(method.name, method.params)
            modules += tuple(f"kdpipe.methods.{name}" for name in used)
        return modules


def _network_modules(name: str) -> tuple[str, ...]:
    """A network's file; nnU-Net's is built by its plans, whose reader lies on this floor."""
    return (f"kdpipe.nets.{name}", *(("kdpipe.nnunet_plans",) if name == "nnunet" else ()))
