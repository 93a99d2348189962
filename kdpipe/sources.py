"""Where a data set comes from: its licence, who may have it, and the files to download."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdpipe.presets import Spacing
from kdpipe.schema import Strict

#: environment variable: a folder or an address of the user's own that is asked for files first
MIRROR = "KDPIPE_MIRROR"
ChecksumStatus = Literal["publisher", "verified_here", "third_party", "record_on_first_use"]


class Source(Strict):
    """Where the data set was published, and what its authors ask to be cited."""

    homepage: str | None = None
    record: str | None = Field(None, description="page of the release that the files are of")
    citation: tuple[str, ...] = ()
    required_text: str | None = Field(None, description="sentence that the owner asks to print")
    derived_from: str | None = Field(None, description="id of the data set whose images these are")


class Licence(Strict):
    """Licence as published; `note` holds what is unsure, `conflict` what sources disagree on."""

    spdx: str
    gated: bool = Field(False, description="has to be accepted, or an account is needed")
    commercial: bool | None = Field(None, description="null: not known")
    redistribute: bool | Literal["share_alike"] = False
    note: str | None = None
    conflict: str | None = None


class Unpack(Strict):
    """How an archive is unpacked; several archives of a set share one folder."""

    format: Literal["tar", "zip", "zip_aes"]
    into: str = Field(
        ".", pattern=r"^[^/\\]", description="of several archives: where this one's files go"
    )
    exclude: tuple[str, ...] = Field((), description="globs of members to leave out")
    max_gb: float = Field(200.0, gt=0, description="more than that unpacked is refused, GB")
    password_env: str | None = Field(None, description="environment variable with the password")


class Archive(Strict):
    """One file to download, or with `cases` one for each, with how sure its checksum is.

    `name` and `urls` may hold ``{case}``.
    """

    name: str
    urls: tuple[str, ...] = ()
    cases: tuple[str, ...] = Field((), description="ids and ranges such as 00000-00209")
    bytes: int | None = None
    md5: str | None = Field(None, pattern=r"^[0-9a-f]{32}$")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    checksum_status: ChecksumStatus = "third_party"
    unpack: Unpack | None = Field(None, description="null: the file is used as it is")

    @model_validator(mode="after")
    def _consistent(self) -> Archive:
        if bool(self.cases) != ("{case}" in self.name):
            raise ValueError(f"{self.name}: 'cases' and {{case}} in the name go together")
        if self.cases and (self.md5 or self.sha256 or self.unpack):
            raise ValueError(f"{self.name}: a checksum or an archive is of one file, not of cases")
        known = self.md5 or self.sha256 or self.checksum_status == "record_on_first_use"
        if not (self.cases or known):
            raise ValueError(
                f"{self.name}: without md5 and sha256 the checksum_status is record_on_first_use"
            )
        for url in self.urls:
            if not re.match(r"https?://", url):
                raise ValueError(f"{self.name}: {url!r} is no http(s) address")
        return self

    def expanded(self) -> list[Archive]:
        """Return one entry for each file."""
        if not self.cases:
            return [self]
        return [
            Archive(
                name=self.name.format(case=case),
                urls=tuple(url.format(case=case) for url in self.urls),
                checksum_status="record_on_first_use",
            )
            for case in expand_ids(self.cases)
        ]


class Phantoms(Strict):
    """What all phantom generators need; each kind adds its grids and its noise."""

    n_cases: int = Field(24, ge=3)
    seed: int = 0
    absent_every: int = Field(6, ge=0, description="each n-th case lacks one structure; 0: none")
    shape_min: tuple[int, int, int] = Field(description="smallest grid, voxels x y z")
    shape_max: tuple[int, int, int] = Field(description="largest grid, voxels x y z")
    spacings: tuple[Spacing, ...] = Field(min_length=1, description="mm, one is drawn a case")


class CtAbdomen(Phantoms):
    """Abdomens in CT (`kdpipe.data.phantoms.abdomen`)."""

    kind: Literal["ct_abdomen"] = "ct_abdomen"
    shape_min: tuple[int, int, int] = Field((56, 56, 28), description="smallest grid, voxels x y z")
    shape_max: tuple[int, int, int] = Field((72, 72, 40), description="largest grid, voxels x y z")
    spacings: tuple[Spacing, ...] = Field(
        ((1.5, 1.5, 2.5), (1.2, 1.2, 3.0), (2.0, 2.0, 2.0)), description="mm, one is drawn a case"
    )
    noise_sd: float = Field(25.0, ge=0, description="HU")


class BrainTumour(Phantoms):
    """Brains with a tumour in four MR sequences (`kdpipe.data.phantoms.brain`)."""

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
    """How the files get here.

    ``open`` is downloaded; ``manual`` is put in place by a person who has accepted the terms;
    ``derived`` is made of the files of another data set; ``local`` is a folder of the user's own.
    """

    mode: Literal["generate", "open", "manual", "derived", "local"]
    steps: tuple[str, ...] = Field((), description="shown verbatim to who has to fetch by hand")
    alternatives: tuple[str, ...] = Field((), description="ids of open sets with like labels")


def expand_ids(ids: tuple[str, ...]) -> list[str]:
    """Return ids with ranges written out: ``0001-0003`` is 0001, 0002, 0003.

    Raises:
        ValueError: a range that runs backwards or whose ends differ in their digits.
    """
    found: list[str] = []
    for item in ids:
        match = re.fullmatch(r"(\d+)-(\d+)", item)
        if match is None:
            found.append(item)
            continue
        first, last = match.groups()
        if len(first) > len(last) or int(first) > int(last):
            raise ValueError(f"range {item!r} must run upwards")
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return found
