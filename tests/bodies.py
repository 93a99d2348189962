"""Little bodies with organs on their proper sides, to plant quirks in."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from kdpipe.data.checks.verdict import Checks
from kdpipe.data.manifest import Case
from kdpipe.data.preparation.prepare import prepare
from kdpipe.labels import Labels
from kdpipe.presets import Preset
from kdpipe.rules import Rules

NAMES = ("background", "liver", "right_kidney", "left_kidney", "spleen", "gallbladder")
LABELS = Labels(raw=dict(enumerate(NAMES)), may_be_absent=("gallbladder",))
SHAPE = (32, 26, 20)
AFFINE = np.array([[1.6, 0, 0, -25], [0, 1.6, 0, -20], [0, 0, 3.0, -700], [0, 0, 0, 1]])
PRESET = {"intensity": {"kind": "window", "low": -200, "high": 300}, "patch": (16, 16, 16)}
# half axes and centres in voxels of RAS axes: x runs to the patient's right
_ORGANS = {
    1: ((6, 6, 6), (23, 13, 12)),
    2: ((2.6, 3, 3), (21, 6, 5)),
    3: ((2.6, 3, 3), (10, 6, 5)),
    4: ((3, 4, 4), (7, 12, 13)),
    5: ((1.4, 1.4, 1.4), (18, 18, 4)),
}


def body(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (X, Y, Z) int16 in HU and ids uint8 of `LABELS`, RAS axes."""
    rng = np.random.default_rng(seed)
    grid = np.indices(SHAPE).astype(float)
    label = np.zeros(SHAPE, np.uint8)
    hu = rng.normal(0, 60, [n // 4 + 1 for n in SHAPE]).repeat(4, 0).repeat(4, 1).repeat(4, 2)
    hu = hu[tuple(slice(n) for n in SHAPE)] + rng.normal(0, 10, SHAPE)
    for index, (half, centre) in _ORGANS.items():
        offset = np.reshape(np.array(centre) + rng.uniform(-0.4, 0.4, 3), (3, 1, 1, 1))
        inside = (((grid - offset) / np.reshape(half, (3, 1, 1, 1))) ** 2).sum(axis=0) < 1
        label[inside] = index
        hu[inside] += 60 + 20 * index
    outside = ((grid[0] - 15.5) / 15) ** 2 + ((grid[1] - 12.5) / 12) ** 2 > 1
    hu[outside & (label == 0)] = -1000
    return np.round(hu).astype(np.int16), label


def save(file: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """Write a NIfTI file with its qform as its sform."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nibabel.save(image, file)
    return file


@dataclass
class Bodies:
    """A data set of CT bodies in a folder, and the result of its check."""

    root: Path
    cases: list[Case] = field(default_factory=list)
    findings: list[dict[str, Any]] = field(default_factory=list)
    channel: str = "CT"

    def add(self, name: str, seed: int | None = None, subject: str = "") -> Case:
        """Write another case."""
        image, label = body(len(self.cases) if seed is None else seed)
        case = Case(
            name,
            subject or f"patient_{name}",
            (save(self.root / f"imagesTr/{name}.nii.gz", image),),
            save(self.root / f"labelsTr/{name}.nii.gz", label),
        )
        self.cases.append(case)
        return case

    def rules(self, **changes: Any) -> Rules:
        """Return the rules of the card, with changes."""
        return Rules.model_validate(
            {"dataset": "bodies", "modality": "CT", "pictures": False} | changes
        )

    @property
    def checks(self) -> dict[str, Path]:
        """The three files."""
        folder = self.root / "out"
        names = {"integrity": "json", "table": "tsv", "report": "html"}
        return {name: folder / f"integrity.{ending}" for name, ending in names.items()}

    def check(self, labels: Labels = LABELS, workers: int = 1, **rules: Any) -> list[str]:
        """Prepare everything; `findings` has the result whether or not errors are raised.

        Returns "code level case" of each finding that no waiver covers, D15 left out.
        """
        try:
            self.prepare(self.hashed(), labels, workers, **rules)
        finally:
            if self.checks["integrity"].is_file():
                self.findings = json.loads(self.checks["integrity"].read_text())["findings"]
        return self.open()

    def hashed(self) -> list[Case]:
        """Return the cases with the digests of their files as they are now."""
        return [
            replace(case, sha256=hashlib.sha256(b"".join(map(_content, files))).hexdigest())
            for case in self.cases
            for files in [(*case.images, case.label)]
        ]

    def prepare(
        self, cases: list[Case], labels: Labels = LABELS, workers: int = 1, **rules: Any
    ) -> None:
        """Prepare and check `cases`."""
        prepare(
            cases,
            Preset.model_validate(PRESET).preparation,
            labels,
            [self.channel],
            store=self.root / "out/cases",
            cases_tsv=self.root / "out/cases.tsv",
            fingerprint=self.root / "out/fingerprint.json",
            digest="settings",
            workers=workers,
            memory_mb=None,
            checks=Checks(self.rules(**rules), **self.checks),
        )

    def open(self) -> list[str]:
        """Return "code level case" of the findings that no waiver covers, D15 left out."""
        return [
            f"{f['code']} {f['level']} {f['case']}".strip()
            for f in self.findings
            if f["code"] != "D15" and not f["waived"]
        ]


def _content(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""
