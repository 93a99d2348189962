"""What a card says that the checks of a data set go by."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from kdpipe.cards import Card, Integrity
from kdpipe.schema import Strict
from kdpipe.sources import expand_ids
from kdpipe.splits import ExplicitSplit


class Rules(Strict):
    """What a card says that the checks need; JSON-serialisable."""

    dataset: str
    title: str = ""
    modality: str = ""
    has_spacing: bool = True
    integrity: Integrity = Integrity()
    n_cases: int | None = Field(None, description="as published")
    expected: tuple[str, ...] = Field((), description="ids that the card's explicit splits name")
    patch: tuple[int, ...] = Field((), description="of the preset, voxels; empty: not checked")
    pictures: bool = Field(True, description="whether a report may show images")
    names: dict[int, str] = Field({}, description="of label ids, where stored facts have none")

    @classmethod
    def of(cls, card: Card, patch: Sequence[int] = ()) -> Rules:
        """Return the rules of a card; images that had to be asked for are not shown."""
        explicit = [rule for rule in card.splits.values() if isinstance(rule, ExplicitSplit)]
        of_cases = [rule for rule in explicit if rule.by == "case"]
        parts = [part for rule in of_cases for part in (rule.train, rule.val, rule.test)]
        lists = [ids for ids in parts if isinstance(ids, tuple)]
        return cls(
            dataset=card.id,
            title=card.title,
            modality=card.modality,
            has_spacing=card.has_spacing,
            integrity=card.integrity,
            n_cases=card.layout.n_cases,
            expected=tuple(sorted({case for ids in lists for case in expand_ids(ids)})),
            patch=tuple(patch),
            names=card.labels.raw,
            pictures=not card.licence.gated,
        )

    @property
    def excluded(self) -> dict[str, str]:
        """Cases that are not used, and why."""
        return {
            case: entry.reason
            for entry in self.integrity.exclude
            for case in expand_ids(entry.cases)
        }
