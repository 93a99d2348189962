"""Data set cards: everything that kdpipe knows of a data set, one YAML file each.

A card says where the images come from, what their labels mean, how patients are split and how
images are prepared. The pipeline has no other knowledge of a data set and no Python per data set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from kdpipe.errors import ConfigError, did_you_mean
from kdpipe.labels import Labels
from kdpipe.presets import Preset, Spacing
from kdpipe.schema import Strict, explain

BUILTIN_CARDS = Path(__file__).parent / "data" / "cards"
PathPart = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
T = TypeVar("T")


class Source(Strict):
    """Where the data set was published, and what its authors ask to be cited."""

    homepage: str | None = None
    citation: tuple[str, ...] = ()


class Licence(Strict):
    """Licence as published; `note` holds what is unsure."""

    spdx: str
    gated: bool = False
    redistribute: bool | str = False
    note: str | None = None


class Archive(Strict):
    """One file to download, with how sure its checksum is."""

    name: str
    urls: tuple[str, ...]
    bytes: int | None = None
    md5: str | None = Field(None, pattern=r"^[0-9a-f]{32}$")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    checksum_status: Literal["publisher", "verified_here", "third_party", "record_on_first_use"] = (
        "third_party"
    )


class Phantoms(Strict):
    """What all phantom generators need; each kind adds its grids and its noise."""

    n_cases: int = Field(24, ge=3)
    seed: int = 0
    absent_every: int = Field(6, ge=0, description="each n-th case lacks one structure; 0: none")
    shape_min: tuple[int, int, int] = Field(description="smallest grid, voxels x y z")
    shape_max: tuple[int, int, int] = Field(description="largest grid, voxels x y z")
    spacings: tuple[Spacing, ...] = Field(min_length=1, description="mm, one is drawn a case")


class CtAbdomen(Phantoms):
    """Abdomens in CT (`kdpipe.data.phantom`)."""

    kind: Literal["ct_abdomen"] = "ct_abdomen"
    shape_min: tuple[int, int, int] = Field((56, 56, 28), description="smallest grid, voxels x y z")
    shape_max: tuple[int, int, int] = Field((72, 72, 40), description="largest grid, voxels x y z")
    spacings: tuple[Spacing, ...] = Field(
        ((1.5, 1.5, 2.5), (1.2, 1.2, 3.0), (2.0, 2.0, 2.0)), description="mm, one is drawn a case"
    )
    noise_sd: float = Field(25.0, ge=0, description="HU")


class BrainTumour(Phantoms):
    """Brains with a tumour in four MR sequences (`kdpipe.data.phantom_brain`)."""

    kind: Literal["brain_tumour"] = "brain_tumour"
    shape_min: tuple[int, int, int] = Field((60, 68, 56), description="smallest grid, voxels x y z")
    shape_max: tuple[int, int, int] = Field((72, 80, 72), description="largest grid, voxels x y z")
    spacings: tuple[Spacing, ...] = Field(
        ((2.0, 2.0, 2.0), (1.6, 1.6, 2.0), (1.8, 1.8, 1.8)),
        description="mm, one is drawn a case",
    )
    noise_sd: float = Field(0.07, ge=0, description="in units of white matter's intensity")


Generator = Annotated[CtAbdomen | BrainTumour, Field(discriminator="kind")]


class Access(Strict):
    """How the images get here."""

    mode: Literal["generate", "open", "manual", "local"]
    steps: tuple[str, ...] = Field((), description="shown verbatim to who has to fetch by hand")


class Layout(Strict):
    """How an extracted archive or a local folder is organised."""

    kind: Literal["auto", "msd", "nnunet"] = "auto"
    case_pattern: str = Field(r".+", description="regular expression that a case id matches fully")
    subject_pattern: str = Field(
        r"(.+)", description="its first group, applied to the case id, is the patient"
    )

    @model_validator(mode="after")
    def _patterns_compile(self) -> Layout:
        for pattern in (self.case_pattern, self.subject_pattern):
            try:
                compiled = re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        if compiled.groups < 1:
            raise ValueError(f"subject_pattern {pattern!r} needs one group: the patient's id")
        return self


class FractionsSplit(Strict):
    """Random split of the patients by fractions; what is left after val and test is train."""

    kind: Literal["fractions"]
    val: float = Field(gt=0, lt=1)
    test: float = Field(gt=0, lt=1)
    seed: int = 12345


class CountsSplit(Strict):
    """Random split of the patients by counts; fewer cases than the sum are an error."""

    kind: Literal["fixed_counts"]
    train: int = Field(ge=1)
    val: int = Field(ge=1)
    test: int = Field(ge=1)
    seed: int = 12345


class KFoldSplit(Strict):
    """Fold k is the test set, fold k + 1 (cyclic) the validation set, the others train."""

    kind: Literal["kfold"]
    n: int = Field(5, ge=3)
    seed: int = 12345


class ExplicitSplit(Strict):
    """Case ids written out."""

    kind: Literal["explicit"]
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


Split = Annotated[
    FractionsSplit | CountsSplit | KFoldSplit | ExplicitSplit, Field(discriminator="kind")
]


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
    quirks: tuple[str, ...] = ()

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
        rule = self.split(split)
        return rule.n if isinstance(rule, KFoldSplit) else 1


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
        card = Card.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not readable as YAML: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{file}: {explain(error, Card)}") from None
    if card.id != name:
        raise ConfigError(f"{file}: id {card.id!r} must equal the file's name {name!r}")
    return card
