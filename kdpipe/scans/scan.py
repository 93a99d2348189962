"""What is segmented as one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Scan:
    """One case to segment.

    Attributes:
        name: of its label map, without the suffix.
        files: one file, one a channel, or the slices of a DICOM series.
        dicom: whether they are DICOM files.
        wrong: why it cannot be used, if that is known already.
    """

    name: str
    files: tuple[Path, ...]
    dicom: bool = False
    wrong: str = ""

    @property
    def place(self) -> str:
        """What a person calls it: its file, its first channel, or the folder of its slices."""
        slices = self.dicom and len(self.files) > 1
        return str(self.files[0].parent if slices else self.files[0])
