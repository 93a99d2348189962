"""What the integrity check finds, and which of it a card accepts."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from kdpipe.atomic import atomic_path, write_json
from kdpipe.cards import Waiver
from kdpipe.errors import DataError
from kdpipe.sources import expand_ids

Level = Literal["error", "warning", "info"]
LEVELS: tuple[Level, ...] = ("error", "warning", "info")
CODES = {
    "D01": "cases missing or too many",
    "D02": "shapes and channels",
    "D03": "label map on another grid than its image",
    "D04": "qform and sform of NIfTI headers",
    "D05": "spacing or affine that looks unset",
    "D06": "sheared axes",
    "D07": "label values",
    "D08": "structures that are absent",
    "D09": "intensities",
    "D10": "number types",
    "D11": "axis of the thick slices",
    "D12": "left and right",
    "D13": "order of the structures' volumes",
    "D14": "duplicates",
    "D15": "small volumes and cut structures",
    "D16": "damaged files",
    "P01": "cannot be prepared",
}
"""What each code is about. P01 is no integrity check: the preset does not suit the image."""


@dataclass(frozen=True)
class Finding:
    """One thing that is odd.

    Attributes:
        code: key of `CODES`.
        level: an ``error`` stops the preparation unless it is waived.
        text: what is wrong and, for an error, how to mend it.
        case: its id; empty for a finding on the data set.
        file: which file; empty where it is not about one.
        waivable: false where a case cannot be used at all, whatever a card says: a file that
            cannot be read, a label map without meaning. Excluding the case helps then.
        waived: why the card accepts it; empty if it does not.
    """

    code: str
    level: Level
    text: str
    case: str = ""
    file: str = ""
    waivable: bool = True
    waived: str = ""

    def __str__(self) -> str:
        about = ", ".join(filter(None, (self.case and f"case {self.case!r}", self.file)))
        return f"{about}: {self.text}" if about else self.text

    def short(self) -> Finding:
        """Return it with no more of the path than the file's name and folder."""
        return replace(self, file="/".join(Path(self.file).parts[-2:]))

    def stored(self) -> dict[str, Any]:
        """Return what is kept with its case: all but the case, and whether it is accepted."""
        kept = asdict(self.short())
        return {name: kept[name] for name in ("code", "level", "text", "file", "waivable")}

    @property
    def stops(self) -> bool:
        """Whether it is an error that the card does not accept."""
        return self.level == "error" and not self.waived


class CheckError(DataError):
    """A case that failed checks; `findings` has all that could be looked at."""

    def __init__(self, message: str, findings: Sequence[Finding]) -> None:
        super().__init__(message)
        self.findings = tuple(findings)

    def __reduce__(self) -> tuple[Any, ...]:  # it comes out of worker processes
        return type(self), (str(self), self.findings)


def waive(findings: Iterable[Finding], waivers: Sequence[Waiver]) -> list[Finding]:
    """Return the findings, each with the reason of the first waiver that covers it.

    A waiver that names cases does not cover findings on the whole data set.
    """
    named = [
        (waiver, None if waiver.cases == "all" else frozenset(expand_ids(waiver.cases)))
        for waiver in waivers
    ]
    found = []
    for finding in findings:
        reasons = (
            waiver.reason
            for waiver, cases in named
            if waiver.code == finding.code and (cases is None or finding.case in cases)
        )
        reason = next(reasons, "") if finding.waivable else ""
        found.append(replace(finding, waived=reason))
    return found


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings by level, then code, case and text; those that are waived come last."""
    return sorted(
        findings,
        key=lambda f: (bool(f.waived), LEVELS.index(f.level), f.code, f.case, f.file, f.text),
    )


def count_levels(findings: Iterable[Finding]) -> dict[str, int]:
    """Return the number of findings of each level, and of those ``waived`` whatever their level."""
    counts = Counter("waived" if f.waived else f.level for f in findings)
    return {name: counts[name] for name in (*LEVELS, "waived")}


def write_findings(
    json_file: Path, tsv_file: Path, findings: Sequence[Finding], facts: dict[str, Any]
) -> None:
    """Write ``integrity.json`` and ``integrity.tsv``, a row a finding.

    Args:
        json_file: gets `facts`, the counts by level and all findings.
        tsv_file: columns as the attributes of `Finding`.
        findings: in the order in which they are written.
        facts: more entries of the JSON file.
    """
    rows = [asdict(finding) for finding in findings]
    with atomic_path(tsv_file) as temporary, temporary.open("w", encoding="utf-8") as stream:
        names = [field.name for field in fields(Finding)]
        table = csv.DictWriter(stream, names, delimiter="\t", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    write_json(json_file, facts | {"counts": count_levels(findings), "findings": rows})
