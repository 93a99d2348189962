"""How the files of a data set lie in their folders."""

from __future__ import annotations

import re
from pathlib import PurePath
from string import Formatter
from typing import Literal

from pydantic import Field, model_validator

from kdpipe.schema import Strict


class Layout(Strict):
    """How an extracted archive or a local folder is organised.

    ``msd`` and ``nnunet`` are the folders of the Decathlon and of nnU-Net, ``auto`` tells the two
    apart. ``files`` finds the first channel of each case by a regular expression on paths below
    the root; its groups ``case`` (needed), ``subject`` (the patient) and ``part`` (a folder that
    means train, val or test) and any others fill the templates of the other files, which are
    below the root too, such as ``labels/{case}.nii.gz``.
    """

    kind: Literal["auto", "msd", "nnunet", "files"] = "auto"
    roots: tuple[str, ...] = Field((".",), min_length=1, description="the first that exists counts")
    case_pattern: str = Field(r".+", description="regular expression that a case id matches fully")
    subject_pattern: str = Field(
        r"(.+)", description="its first group, applied to the case id, is the patient"
    )
    find: str | None = Field(None, description="files: regular expression of the first channel")
    channels: tuple[str, ...] = Field((), description="files: templates of the other channels")
    label: str | None = Field(None, description="files: template of the label map")
    masks: dict[str, str] = Field(
        {}, description="files: template of one binary mask a structure, instead of a label map"
    )
    n_cases: int | None = Field(None, ge=1, description="with labels, as published")

    @model_validator(mode="after")
    def _patterns_compile(self) -> Layout:
        for pattern in filter(None, (self.case_pattern, self.subject_pattern, self.find)):
            try:
                compiled = re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
            if pattern == self.subject_pattern and compiled.groups < 1:
                raise ValueError(f"subject_pattern {pattern!r} needs one group: the patient's id")
        return self

    @model_validator(mode="after")
    def _roots_lie_below(self) -> Layout:
        for root in self.roots:
            if PurePath(root).is_absolute() or ".." in PurePath(root).parts:
                raise ValueError(f"root {root!r} must lie below the unpacked folder")
        return self

    @model_validator(mode="after")
    def _files_have_templates(self) -> Layout:
        if self.kind != "files":
            if self.find or self.channels or self.label or self.masks:
                raise ValueError("find, channels, label and masks are for kind: files")
            return self
        if self.find is None or (self.label is None) == (not self.masks):
            raise ValueError("kind: files needs find, and either label or masks")
        groups = set(re.compile(self.find).groupindex)
        if "case" not in groups:
            raise ValueError(f"find {self.find!r} needs a group (?P<case>...)")
        for template in filter(None, (*self.channels, self.label, *self.masks.values())):
            try:
                fields = [field for _, field, _, _ in Formatter().parse(template)]
            except ValueError as error:
                raise ValueError(f"template {template!r}: {error}") from None
            if unknown := sorted({field for field in fields if field is not None} - groups):
                raise ValueError(
                    f"template {template!r}: find has no group {unknown}, only {sorted(groups)}"
                )
        return self
