"""How patients are divided into train, validation and test: the rules that a card may name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdpipe.errors import ConfigError
from kdpipe.schema import Strict
from kdpipe.sources import expand_ids


class _Rule(Strict):
    """What all rules share."""

    exclude: tuple[str, ...] = Field((), description="case ids that are in no part; ranges too")
    note: str | None = Field(None, description="where the split comes from")

    @model_validator(mode="after")
    def _ranges_run_upwards(self) -> _Rule:
        expand_ids(self.exclude)
        return self

    @property
    def selects_on_test(self) -> bool:
        """Whether the validation cases are the test cases, as in some papers."""
        return getattr(self, "test", None) == "val"


class FractionsSplit(_Rule):
    """Random split of the patients by fractions; what is left after val and test is train."""

    kind: Literal["fractions"]
    val: float = Field(gt=0, lt=1)
    test: float = Field(gt=0, lt=1)
    seed: int = 12345


class CountsSplit(_Rule):
    """Random split of the patients by counts; fewer cases than the sum are an error."""

    kind: Literal["fixed_counts"]
    train: int = Field(ge=1)
    val: int = Field(ge=1)
    test: int = Field(ge=1)
    seed: int = 12345


class KFoldSplit(_Rule):
    """Fold k is the test set, fold k + 1 (cyclic) the validation set, the others train."""

    kind: Literal["kfold"]
    n: int = Field(5, ge=3)
    seed: int = 12345
    stratify: bool = Field(False, description="deal patients out by which structures they have")


class ExplicitSplit(_Rule):
    """Ids of cases, or of patients, written out or as ranges such as ``0001-0010``.

    ``test: val`` scores on the validation cases, as some papers do; every table says so.
    """

    kind: Literal["explicit"]
    by: Literal["case", "subject"] = Field("case", description="what the ids are of")
    train: tuple[str, ...] | Literal["rest"]
    val: tuple[str, ...]
    test: tuple[str, ...] | Literal["val", "rest"]

    @model_validator(mode="after")
    def _expand(self) -> ExplicitSplit:
        if self.train == "rest" and self.test == "rest":
            raise ValueError("train and test cannot both be the rest")
        lists = {name: getattr(self, name) for name in ("train", "val", "test")}
        given = {n: set(expand_ids(ids)) for n, ids in lists.items() if isinstance(ids, tuple)}
        names = sorted(given)
        for number, first in enumerate(names):
            for second in names[number + 1 :]:
                if both := sorted(given[first] & given[second]):
                    raise ValueError(f"{both[0]!r} is in {first} and in {second}")
        return self


class FoldersSplit(_Rule):
    """Parts as the data set's folders have them: the group ``part`` of `layout.find`.

    ``train``, ``val`` and ``test`` name folders; cases of others are left out. A fraction for
    ``val`` takes that share of the training patients instead.
    """

    kind: Literal["folders"]
    train: tuple[str, ...] = Field(min_length=1)
    val: tuple[str, ...] | Annotated[float, Field(gt=0, lt=1)]
    test: tuple[str, ...] | Literal["val"]
    seed: int = 12345

    @model_validator(mode="after")
    def _distinct(self) -> FoldersSplit:
        given = [
            name
            for part in (self.train, self.val, self.test)
            if isinstance(part, tuple)
            for name in part
        ]
        if twice := sorted({name for name in given if given.count(name) > 1}):
            raise ValueError(f"folder {twice[0]!r} is named twice; a folder is of one part")
        return self


class EverySplit(_Rule):
    """Each n-th case of the sorted ids is the validation set, as in ACF-BCKD's lists."""

    kind: Literal["every"]
    n: int = Field(5, ge=2)
    offset: int = Field(4, ge=0)
    test: Literal["val"] = "val"


class ImportedSplit(_Rule):
    """A file of another tool: nnU-Net's ``splits_final.json``, or a data list of MONAI.

    nnU-Net's folds have no test set: fold k's validation cases are the test set here, and
    `val` of the training patients are set aside for the selection of checkpoints. MONAI's
    ``training`` and ``validation`` are used alike, or, with `folds`, its ``training`` with a
    ``fold`` for each item. Where its ``test`` has labels, the three lists are the three parts.
    """

    kind: Literal["nnunet", "monai"]
    file: str = Field(description="absolute, or beside the card")
    val: float = Field(0.1, gt=0, lt=1, description="share of the training patients")
    folds: int | None = Field(
        None, ge=1, description="of the file; null: 5 of nnU-Net's, 1 of MONAI's"
    )
    seed: int = 12345

    @property
    def n_folds(self) -> int:
        """Number of folds that the file has."""
        return self.folds or (5 if self.kind == "nnunet" else 1)

    def path(self, card: Path) -> Path:
        """Return the file, for the file of the card; ConfigError if it is not there."""
        file = card.parent / Path(self.file).expanduser()
        if not file.is_file():
            raise ConfigError(
                f"{card}: its split of kind {self.kind} needs {file}, which is not there; put "
                "it there or mend 'file'"
            )
        return file


Split = Annotated[
    FractionsSplit
    | CountsSplit
    | KFoldSplit
    | ExplicitSplit
    | FoldersSplit
    | EverySplit
    | ImportedSplit,
    Field(discriminator="kind"),
]


def n_folds(rule: Split) -> int:
    """Number of folds of a rule; 1 for a fixed split."""
    if isinstance(rule, KFoldSplit):
        return rule.n
    return rule.n_folds if isinstance(rule, ImportedSplit) else 1
