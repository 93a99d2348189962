"""The manifest of a data set: which files, which patient and which folder each case has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdpipe.atomic import write_text
from kdpipe.errors import DataError

COLUMNS = ("case", "subject", "images", "label", "sha256", "part")


@dataclass(frozen=True)
class Case:
    """Files of one case.

    `sha256` is empty until `index` has read them. `part` is the folder that means train, val or
    test in data sets that have such. `masks` are (structure, binary mask) where there is a file
    for each structure; `label` is the first until `acquisition.canonical` has merged them.
    """

    case: str
    subject: str
    images: tuple[Path, ...]
    label: Path
    sha256: str = ""
    part: str = ""
    masks: tuple[tuple[str, Path], ...] = ()

    def __post_init__(self) -> None:
        check_case_name(self.case)


def check_case_name(name: str) -> None:
    """Raise DataError unless files and folders can be named after a case.

    Names come with the data, and `../x` would lead out of every folder that kdpipe writes to.
    """
    if not isinstance(name, str) or name in {"", ".", ".."} or re.search(r"[/\\\x00-\x1f]", name):
        raise DataError(
            f"case id {name!r}: not usable as the name of a file (empty, dots alone, or with a "
            "slash or a control character); rename the case's files"
        )


def write_manifest(path: Path, cases: Sequence[Case]) -> None:
    """Write the cases as TSV with the columns `COLUMNS`; images are joined by `;`.

    Raises:
        DataError: if a path holds a character that the table could not give back.
    """
    lines = ["\t".join(COLUMNS)]
    for case in cases:
        if case.masks:
            raise ValueError(f"case {case.case!r} has masks; canonical_labels merges them first")
        for file in (*case.images, case.label):
            if re.search(r"[;\t\r\n]", str(file)):
                raise DataError(
                    f"case {case.case!r}, {str(file)!r}: rename it, a path must have no "
                    "semicolon, tab or line break"
                )
        images = ";".join(map(str, case.images))
        row = (case.case, case.subject, images, str(case.label), case.sha256, case.part)
        lines.append("\t".join(row))
    write_text(path, "\n".join(lines) + "\n")


def read_manifest(path: Path) -> list[Case]:
    """Read what `write_manifest` wrote.

    Raises:
        DataError: if there is no such file or it is no manifest.
    """
    try:
        header, *lines = path.read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t") for line in lines]
        if tuple(header.split("\t")) != COLUMNS:
            raise ValueError(f"unexpected columns {header!r}")
        return [
            Case(case, subject, tuple(map(Path, images.split(";"))), Path(label), sha256, part)
            for case, subject, images, label, sha256, part in rows
        ]
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: not readable as a manifest ({error}); delete it and run again"
        ) from None
