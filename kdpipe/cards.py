"""Data set cards: everything that kdpipe knows of a data set, one YAML file each.

A card says where the images come from, what their labels mean, how patients are split and how
images are prepared. The pipeline has no other knowledge of a data set and no Python per data set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from kdpipe.errors import ConfigError, did_you_mean
from kdpipe.labels import Labels
from kdpipe.layouts import Layout
from kdpipe.presets import Preset
from kdpipe.protocols import DEFAULT_TOLERANCE_MM
from kdpipe.schema import Strict, explain
from kdpipe.sources import Access, Archive, Generator, Licence, Source
from kdpipe.splits import Split, n_folds
from kdpipe.yaml_files import load_yaml

BUILTIN_CARDS = Path(__file__).parent / "data" / "cards"
PathPart = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
T = TypeVar("T")


class Waiver(Strict):
    """A finding of the integrity check that is known and accepted."""

    code: str = Field(pattern=r"^D\d\d$")
    cases: tuple[str, ...] | Literal["all"] = "all"
    reason: str


class Exclusion(Strict):
    """Cases that are not used at all."""

    cases: tuple[str, ...] = Field(description="ids and ranges")
    reason: str


class Integrity(Strict):
    """What is known to be wrong with the data, and what is done about it."""

    waivers: tuple[Waiver, ...] = ()
    exclude: tuple[Exclusion, ...] = ()
    left_right: bool = Field(
        True, description="check that liver and right kidney lie on the right, spleen on the left"
    )


class Metrics(Strict):
    """How the data set's own papers and challenge score."""

    protocols: tuple[str, ...] = Field((), description="named metric protocols that papers use")
    tolerance_mm: float = Field(
        DEFAULT_TOLERANCE_MM, gt=0, description="of the surface Dice, for all other structures"
    )
    tolerances_mm: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="of the surface Dice, by structure"
    )
    note: str | None = None

    def tolerances_of(self, structures: Iterable[str]) -> dict[str, float]:
        """Return structure -> tolerance of the surface Dice in mm (voxels without a spacing)."""
        return {name: self.tolerances_mm.get(name, self.tolerance_mm) for name in structures}


class Card(Strict):
    """A data set. The file's name is its id, and the id is part of every path."""

    schema_version: Literal[1]
    id: str = Field(pattern=r"^[a-z0-9_]+$")
    title: str
    modality: str
    channels: tuple[str, ...] = Field(min_length=1)
    source: Source = Source()
    licence: Licence
    access: Access
    generator: Generator | None = None
    files: tuple[Archive, ...] = ()
    layout: Layout = Layout()
    has_spacing: bool = Field(
        True, description="false: pictures of unknown scale, whose distances are scored in voxels"
    )
    labels: Labels
    splits: dict[PathPart, Split]
    presets: dict[PathPart, Preset]
    metrics: Metrics = Metrics()
    integrity: Integrity = Integrity()
    overlaps: tuple[str, ...] = Field((), description="data sets that share patients with this")
    quirks: tuple[str, ...] = ()
    evidence: dict[str, Literal["verified", "secondary", "memory"]] = Field(
        {}, description="how sure a part of this card is: read at the source, elsewhere, recalled"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Card:
        if "default" not in self.splits:
            raise ValueError("splits needs an entry 'default'")
        if "default" not in self.presets:
            raise ValueError("presets needs an entry 'default'")
        if (self.access.mode == "generate") != (self.generator is not None):
            raise ValueError("access mode 'generate' and a 'generator' go together")
        for name, preset in self.presets.items():
            try:
                preset.intensities(len(self.channels))
            except ValueError as error:
                raise ValueError(f"presets.{name}: {error}") from None
        return self

    def preset(self, name: str) -> Preset:
        """Return a preset by name, or raise ConfigError with the valid names."""
        return _pick(self.presets, name, f"data set {self.id!r} has no preset")

    def split(self, name: str) -> Split:
        """Return a split rule by name, or raise ConfigError with the valid names."""
        return _pick(self.splits, name, f"data set {self.id!r} has no split")

    def n_folds(self, split: str) -> int:
        """Number of folds of a split; 1 for a fixed split."""
        return n_folds(self.split(split))


def _pick(entries: Mapping[str, T], name: str, problem: str) -> T:
    if name not in entries:
        raise ConfigError(f"{problem} {name!r}: {did_you_mean(name, entries)}")
    return entries[name]


def card_files(folders: Sequence[Path | str] = ()) -> dict[str, Path]:
    """Return id -> file of all cards: kdpipe's own, then those of `folders` (later ones win)."""
    found: dict[str, Path] = {}
    for folder in (BUILTIN_CARDS, *map(Path, folders)):
        if not folder.is_dir():
            raise ConfigError(f"cards: {folder} is not a folder")
        found.update({file.stem: file for file in sorted(folder.glob("*.yaml"))})
    return found


def load_card(name: str, folders: Sequence[Path | str] = ()) -> Card:
    """Load a card by the data set's name; ConfigError names what is unknown or wrong."""
    files = card_files(folders)
    if name not in files:
        raise ConfigError(f"unknown data set {name!r}: {did_you_mean(name, files)}")
    file = files[name]
    try:
        card = Card.model_validate(load_yaml(file.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not readable as YAML: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{file}: {explain(error, Card)}") from None
    if card.id != name:
        raise ConfigError(f"{file}: id {card.id!r} must equal the file's name {name!r}")
    return card
