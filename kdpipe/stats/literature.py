"""Published tables and claims: what papers print, with what is known and doubted of it.

``references/*.yaml`` holds one source each. Names are those of kdpipe's catalogues; what kdpipe
does not have is left out, and such a row is documentation only. A paper whose tables could not be
read has claims alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from kdpipe.errors import ConfigError
from kdpipe.schema import Strict, explain
from kdpipe.stats.scores import OVERALL
from kdpipe.yaml_files import load_yaml

FOLDER = Path(__file__).parent / "references"
Role = Literal["teacher", "student"]


class Source(Strict):
    """Where the numbers come from."""

    title: str
    venue: str
    year: int = Field(ge=2000)
    read_at: str = Field(description="what was read: a file, an abstract, a summary")
    commit: str | None = Field(None, pattern=r"^[0-9a-f]{40}$", description="of the file read")


class Column(Strict):
    """A metric of a table: `printed` is the unit that the paper names, `computed` the true one."""

    metric: str = Field(description="of the protocol that has its definition")
    printed: Literal["%", "fraction", "mm", "voxel", "none"]
    computed: Literal["fraction", "mm", "voxel"]

    @property
    def scale(self) -> float:
        """What a printed number is multiplied by to be in the unit of kdpipe's scores."""
        return 0.01 if self.printed == "%" else 1.0


class Row(Strict):
    """A trained network of a table. Its scores are (mean,) or (mean, sd over runs), as printed."""

    role: Role = "student"
    teacher: str | None = None
    student: str | None = None
    method: str | None = None
    structures: tuple[str, ...] = Field((OVERALL,), min_length=1, description="any of these names")
    printed: str = Field(description="what the paper calls it")
    scores: dict[str, tuple[float] | tuple[float, float]] = Field(min_length=1)

    @model_validator(mode="after")
    def _sd_not_negative(self) -> Row:
        for name, score in self.scores.items():
            if len(score) == 2 and score[1] < 0:
                raise ValueError(f"{self.printed}: the sd of {name} is negative")
        return self

    @property
    def is_complete(self) -> bool:
        """Whether kdpipe has all that the row names, so that a study can match it."""
        if self.role == "teacher":
            return self.teacher is not None
        needs = [self.student, self.method] + [self.teacher] * (self.method != "none")
        return None not in needs


class Published(Strict):
    """One table: rows that share data, division, scoring and the rule that chose checkpoints."""

    title: str
    datasets: tuple[str, ...] = Field(description="cards that hold these data; none: no card does")
    split: str | None = Field(None, description="of the card, with the very same cases")
    test_cases: int | None = Field(None, ge=1)
    selection: Literal["reported cases", "validation cases", "last epoch", "unknown"]
    protocol: str | None = Field(None, description="ours that has its definitions")
    runs: int | None = Field(None, ge=1, description="trainings behind a mean; null: unknown")
    metrics: dict[str, Column] = Field(min_length=1)
    doubts: tuple[str, ...] = ()
    rows: tuple[Row, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _rows_fit(self) -> Published:
        seen: set[tuple[object, ...]] = set()
        for row in self.rows:
            if strange := row.scores.keys() - self.metrics.keys():
                raise ValueError(f"{row.printed}: no metric {', '.join(sorted(strange))}")
            ours = (row.role, row.teacher, row.student, row.method, row.structures)
            if (key := ours if row.is_complete else (row.printed,)) in seen:
                raise ValueError(f"{row.printed}: there twice")
            seen.add(key)
        return self


class Claim(Strict):
    """A sentence with a number, or with none (`value` 0: better at all), that has no table."""

    text: str
    kind: Literal["gain_points", "gain_percent", "lower_is_better"] = Field(
        description="more than `value` points, per cent of the rival, or units of a distance"
    )
    value: float = Field(ge=0)
    up_to: bool = Field(False, description="the largest of gains whose setting is not told")
    against: Literal["none", "others"] = "none"
    method: str
    student: str | None = Field(None, description="null: any")
    metric: Literal["dice", "hd95"]
    datasets: tuple[str, ...] = Field(min_length=1)
    structures: tuple[str, ...] = Field((OVERALL,), min_length=1)
    doubts: tuple[str, ...] = ()


class Reference(Strict):
    """A source with its tables and claims. The file's name is its id."""

    schema_version: Literal[1]
    id: str = Field(pattern=r"^[a-z0-9_]+$")
    source: Source
    doubts: tuple[str, ...] = Field(min_length=1)
    tables: tuple[Published, ...] = ()
    claims: tuple[Claim, ...] = ()

    @model_validator(mode="after")
    def _says_something(self) -> Reference:
        if not self.tables and not self.claims:
            raise ValueError("neither tables nor claims")
        return self

    @property
    def datasets(self) -> set[str]:
        """All cards that tables or claims are about."""
        parts: list[Published | Claim] = [*self.tables, *self.claims]
        return {name for part in parts for name in part.datasets}


def load_references(folder: Path = FOLDER) -> list[Reference]:
    """Return all sources, sorted by name.

    Raises:
        ConfigError: a file is not readable, has an unknown key or a value that does not fit, or
            another name than its id.
    """
    return [_load(file) for file in sorted(folder.glob("*.yaml"))]


def _load(file: Path) -> Reference:
    try:
        found = Reference.model_validate(load_yaml(file.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: not readable as YAML: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{file}: {explain(error, Reference)}") from None
    if found.id != file.stem:
        raise ConfigError(f"{file}: id {found.id!r} must equal the file's name {file.stem!r}")
    return found
