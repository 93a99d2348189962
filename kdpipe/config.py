"""The configuration of a study, checked before the graph is built.

``config.yaml`` and the overlays in ``workflow/studies`` hold axes (data sets, teachers, students,
methods, seeds) and overrides. Unknown keys, names and parameters are errors that name the key and
the nearest valid name. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from kdpipe import discover
from kdpipe.cards import Card, card_files, load_card
from kdpipe.composition import check_method, entry_from_yaml
from kdpipe.errors import ConfigError, did_you_mean
from kdpipe.nnunet_plans import preset_from_plans
from kdpipe.presets import Preset
from kdpipe.provenance import digest
from kdpipe.resources import Resources
from kdpipe.schema import Strict, explain
from kdpipe.settings import (
    Evaluation,
    Inference,
    Profile,
    Search,
    Ship,
    Statistics,
    TrainingRoles,
)
from kdpipe.tuning import is_reserved
from kdpipe.yaml_files import check_size, load_yaml

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def _short_forms(schema: dict[str, Any]) -> None:
    """Let the JSON schema accept what people write: a name, or a name with settings."""
    description = schema["description"]
    schema.clear()
    schema["description"] = description
    schema["anyOf"] = [{"type": "string"}, {"type": "object", "minProperties": 1}]


class Entry(Strict):
    """One value of an axis: a catalogue name, its own parameters, and its label in paths."""

    model_config = ConfigDict(json_schema_extra=_short_forms)

    name: str
    params: dict[str, Any] = {}
    label: str = ""
    weights: str | None = Field(None, description="of a teacher that is trained already: a file")

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        return value if isinstance(value, Entry) else entry_from_yaml(value)

    @model_validator(mode="after")
    def _label_is_a_path_part(self) -> Entry:
        if not _LABEL.fullmatch(self.label):
            raise ValueError(
                f"label {self.label!r} must start with a letter or digit and may hold . _ + - too"
            )
        return self


class PresetOfTeacher(Strict):
    """The preparation that a trained nnU-Net expects, read from its ``plans.json``."""

    nnunet: str = Field(description="folder of the trained model")
    configuration: str = "3d_fullres"


class DatasetUse(Strict):
    """How a study uses a data set: which of the card's splits, folds and presets."""

    model_config = ConfigDict(json_schema_extra=_short_forms)

    name: str
    splits: tuple[str, ...] = Field(
        ("default",), min_length=1, description="named splits of the card"
    )
    folds: tuple[int, ...] | Literal["all"] = Field("all", description="folds to run")
    preset: str | PresetOfTeacher = Field(
        "default", description="preparation preset of the card, or {nnunet: folder}"
    )

    @property
    def preset_label(self) -> str:
        """Name of the preset in paths."""
        if isinstance(self.preset, str):
            return self.preset
        return f"nnunet_{digest(self.preset.model_dump())[:8]}"


def _dataset_from_yaml(value: Any) -> Any:
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping) and "name" not in value and len(value) == 1:
        ((name, settings),) = value.items()
        return {"name": name, **(settings or {})}
    return value


class Study(Strict):
    """A whole study: the axes, whose product is the grid of cells, and the settings."""

    study: str = Field(
        "study", pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", description="names the tables"
    )
    data_root: str = Field("data", description="holds raw/ and prepared/")
    results_root: str = "results"
    cards: tuple[str, ...] = Field((), description="folders with cards of your own")
    data_source: dict[str, str] = Field({}, description="data set -> local folder with its files")
    accept_licence: tuple[str, ...] = Field(
        (), description="data sets whose terms you have read and accepted"
    )
    accept_checksum: tuple[str, ...] = Field(
        (), description="data sets whose files may differ from a checksum of third parties"
    )
    datasets: tuple[Annotated[DatasetUse, BeforeValidator(_dataset_from_yaml)], ...] = Field(
        min_length=1
    )
    teachers: tuple[Entry, ...] = Field(min_length=1)
    students: tuple[Entry, ...] = Field(min_length=1)
    methods: tuple[Entry, ...] = Field(description="'none' is added where it is missing")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1)
    teacher_seed: int = Field(0, ge=0, description="all students learn from this one training")
    budget: int = Field(
        0, ge=0, description="trials of each method, 'none' included, on validation data; 0: none"
    )
    search: Search = Search()
    cohort: bool | Annotated[int, Field(ge=2, le=32)] = Field(
        False, description="train students of the same batches in one job: true (12), or how many"
    )
    training: TrainingRoles = TrainingRoles()
    inference: Inference = Inference()
    evaluation: Evaluation = Evaluation()
    statistics: Statistics = Statistics()
    profile: Profile = Profile()
    ship: Ship = Ship()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _axes(self) -> Study:
        for axis in ("teachers", "students", "methods"):
            labels = [entry.label for entry in getattr(self, axis)]
            _no_repeats(axis, labels, "give one of them a label of its own with 'as:'")
        for entry in (*self.students, *self.methods):
            if entry.weights is not None:
                raise ValueError(f"{entry.label}: 'weights' is for teachers")
        for entry in self.methods:
            if (entry.name == "none") != (entry.label == "none"):
                raise ValueError(
                    f"methods: 'none' is the undistilled student, by name and by label; found "
                    f"{entry.name!r} as {entry.label!r}"
                )
            if is_reserved(entry.label):
                raise ValueError(
                    f"methods: in the label {entry.label!r}, '+trial' and '+tuned' are what kdpipe "
                    "calls the trials of a budget; give the method another label with 'as:'"
                )
        if self.budget == 1:
            raise ValueError(
                "budget: the first trial is the method as configured, so 1 tries nothing; "
                "write 2 or more, or 0"
            )
        _no_repeats("datasets", [use.name for use in self.datasets], "name each once")
        _no_repeats("seeds", list(self.seeds), "name each once")
        return self

    def card(self, dataset: str) -> Card:
        """Load the card of a data set of this study."""
        return load_card(dataset, self.cards)

    def preset(self, use: DatasetUse) -> Preset:
        """Return the preset that a data set is prepared by."""
        if isinstance(use.preset, str):
            return self.card(use.name).preset(use.preset)
        return preset_from_plans(Path(use.preset.nnunet).expanduser(), use.preset.configuration)

    def folds(self, use: DatasetUse, split: str) -> tuple[int, ...]:
        """Folds of `split` that this study runs."""
        count = self.card(use.name).n_folds(split)
        wanted = range(count) if use.folds == "all" else use.folds
        for fold in wanted:
            if not 0 <= fold < count:
                raise ConfigError(
                    f"datasets.{use.name}: split {split!r} has folds 0 to {count - 1}, not {fold}"
                )
        return tuple(wanted)


def _no_repeats(axis: str, labels: list[Any], mend: str) -> None:
    repeated = sorted({str(label) for label in labels if labels.count(label) > 1})
    if repeated:
        raise ValueError(f"{axis}: {', '.join(repeated)} stands there more than once; {mend}")


def load_study(config: Mapping[str, Any], origin: str = "the configuration") -> Study:
    """Validate a merged configuration: keys, catalogue names, parameters, cards, protocols.

    Args:
        config: the mapping that Snakemake has merged from all configuration files.
        origin: what the messages call it, usually the files' names.

    Raises:
        ConfigError: names the key, the origin and the nearest valid name.
    """
    try:
        check_size(config)
        study = Study.model_validate(dict(config))
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{origin}: {explain(error, Study)}") from None
    try:
        return _check_names(_with_baseline(study))
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None


def read_study(*files: Path | str) -> Study:
    """Load a study from YAML files, later ones laid over earlier ones as Snakemake does."""
    merged: dict[str, Any] = {}
    for file in files:
        try:
            content = load_yaml(Path(file).read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{file}: not readable as YAML: {error}") from None
        _merge(merged, content)
    return load_study(merged, " + ".join(map(str, files)))


def _merge(base: dict[str, Any], overlay: Mapping[str, Any]) -> None:
    for key, value in overlay.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _with_baseline(study: Study) -> Study:
    """Add the undistilled student, without which no gain can be stated."""
    if any(entry.name == "none" for entry in study.methods):
        return study
    return study.model_copy(update={"methods": (Entry(name="none"), *study.methods)})


def _check_names(study: Study) -> Study:
    for entry in (*study.teachers, *study.students):
        discover.check_params("nets", entry.name, entry.params)
        if entry.weights and discover.constant("nets", entry.name, "TRAINED", False):
            raise ConfigError(f"{entry.label}: {entry.name!r} brings its own weights; no 'weights'")
    for entry in study.students:
        if discover.constant("nets", entry.name, "TRAINED", False):
            raise ConfigError(f"students: {entry.name!r} is trained already; it can be a teacher")
    for entry in study.methods:
        check_method(entry.name, entry.params)
    for use in study.datasets:
        _check_preset(study, use)
        for split in use.splits:
            study.folds(use, split)
    cards = card_files(study.cards)
    for name in study.data_source:
        if name not in cards:
            raise ConfigError(
                f"data_source: unknown data set {name!r}, {did_you_mean(name, cards)}"
            )
    return study


def _check_preset(study: Study, use: DatasetUse) -> None:
    """Raise ConfigError if there is no such preset, or a network is not for its dimensions."""
    preset = study.preset(use)
    try:
        preset.intensities(len(study.card(use.name).channels))
    except ValueError as error:
        raise ConfigError(f"datasets.{use.name}.preset: {error}") from None
    for entry in (*study.teachers, *study.students):
        discover.check_dims(entry.name, len(preset.patch))
    for role in ("teacher", "student"):
        turns = getattr(study.training, role).augmentation.rotate90_probability
        if turns and preset.patch[0] != preset.patch[1]:
            raise ConfigError(
                f"training.{role}.augmentation.rotate90_probability: a quarter turn of a patch of "
                f"{' x '.join(map(str, preset.patch))} (data set {use.name}) does not fit; set it "
                "to 0, or take a preset whose first two sides are equal"
            )


def json_schema() -> dict[str, Any]:
    """JSON schema of ``config.yaml``, for editors; generated, kept in step by a test."""
    schema = Study.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema
