"""How patients are divided into train, validation and test: the rules that a card may name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdpipe.schema import Strict
from kdpipe.sources import expand_ids


class _Rule(Strict):
    """What all rules share."""

    exclude: tuple[str, ...] = Field((), description="case ids that are in no part; ranges too")
    note: str | None = Field(None, description="where the split comes from")


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


class _Published(_Rule):
    """A split of a paper; one without a validation set of its own selects on the test set."""

    @property
    def selects_on_test(self) -> bool:
        """Whether the validation cases are the test cases, as in the paper."""
        return getattr(self, "test", None) == "val"


class ExplicitSplit(_Published):
    """Case ids written out, or ranges such as ``0001-0010``.

    ``test: val`` scores on the validation cases, as some papers do; every table says so.
    """

    kind: Literal["explicit"]
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


class FoldersSplit(_Published):
    """Parts as the data set's folders have them: the group ``part`` of `layout.find`.

    ``val`` and ``test`` name folders. A fraction for ``val`` takes that share of the training
    patients instead.
    """

    kind: Literal["folders"]
    train: tuple[str, ...]
    val: tuple[str, ...] | float
    test: tuple[str, ...] | Literal["val"]
    seed: int = 12345


class EverySplit(_Published):
    """Each n-th case of the sorted ids is the validation set, as in ACF-BCKD's lists."""

    kind: Literal["every"]
    n: int = Field(5, ge=2)
    offset: int = Field(4, ge=0)
    test: Literal["val"] = "val"


class ImportedSplit(_Rule):
    """A file of another tool: nnU-Net's ``splits_final.json`` or MONAI's ``dataset.json``.

    nnU-Net's folds have no test set: fold k's validation cases are the test set here, and
    `val` of the training patients are set aside for the selection of checkpoints. MONAI's
    ``training`` and ``validation`` lists are used alike, with ``test`` where it has labels.
    """

    kind: Literal["nnunet", "monai"]
    file: str = Field(description="absolute, or beside the card")
    val: float = Field(0.1, gt=0, lt=1, description="share of the training patients")
    folds: int = Field(5, ge=1, description="of the file; 1 for MONAI's")
    seed: int = 12345


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
    return rule.folds if isinstance(rule, ImportedSplit) else 1
