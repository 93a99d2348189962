"""The members of a tar or a zip, read the same way."""

from __future__ import annotations

import lzma
import os
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self, cast

from kdpipe.data.acquisition._secrets import redact
from kdpipe.errors import ConfigError, DataError

Format = Literal["tar", "zip", "zip_aes"]
_AES = 99  # zip's compression method of WinZip's AES
_LONGEST_HEADER = 1 << 20  # tar reads extended headers into memory
_LONG_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,  # zip: wrong password
    NotImplementedError,  # zip: a compression method that Python lacks
    ValueError,
)


@dataclass(frozen=True)
class Member:
    """One entry; `kind` is "file", "folder", or in words what it is instead."""

    name: str
    kind: str
    entry: Any


def guess_format(file: Path) -> Format:
    """Return the format by the first bytes."""
    with file.open("rb") as handle:
        return "zip" if handle.read(2) == b"PK" else "tar"


def open_archive(raw: IO[bytes], format: Format) -> Any:
    """Return the opened archive; a zip with AES by pyzipper."""
    if format == "tar":
        return tarfile.open(fileobj=raw, mode="r:*", tarinfo=_TarInfo)
    archive = zipfile.ZipFile(raw)
    if format == "zip" and all(info.compress_type != _AES for info in archive.infolist()):
        return archive
    try:
        import pyzipper  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigError(
            f"{raw.name}: encrypted with AES, which needs a package: pip install pyzipper"
        ) from None
    return pyzipper.AESZipFile(raw)


class _TarInfo(tarfile.TarInfo):
    """Headers of a tar; tarfile itself takes damage behind the first one for the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":  # the zeros at the end, as it should be
                raise
            raise tarfile.ReadError("cut off or damaged") from None

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _LONG_HEADERS and header.size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        return header


def members(archive: Any) -> Iterator[Member]:
    """Yield all entries in the archive's order."""
    tar = isinstance(archive, tarfile.TarFile)
    yield from _tar_members(archive) if tar else _zip_members(archive)


def _tar_members(archive: tarfile.TarFile) -> Iterator[Member]:
    for entry in archive:
        kinds = {
            "file": entry.isfile(),
            "folder": entry.isdir(),
            "a link": entry.issym() or entry.islnk(),
            "a device or a pipe": entry.isdev(),
        }
        kind = next((kind for kind, fits in kinds.items() if fits), "of an unknown kind")
        yield Member(entry.name, kind, entry)


def _zip_members(archive: zipfile.ZipFile) -> Iterator[Member]:
    for entry in archive.infolist():
        unix = stat.S_IFMT(entry.external_attr >> 16)
        if unix not in (0, stat.S_IFREG, stat.S_IFDIR):
            kind = "a link" if stat.S_ISLNK(unix) else "a device or a pipe"
        else:
            kind = "folder" if entry.is_dir() or stat.S_ISDIR(unix) else "file"
        cut = "\0" in entry.orig_filename  # zipfile cuts names there
        yield Member(entry.orig_filename if cut else entry.filename, kind, entry)


def open_member(archive: Any, member: Member, password_env: str | None) -> IO[bytes]:
    """Open a member for reading."""
    if isinstance(archive, tarfile.TarFile):
        return cast(IO[bytes], archive.extractfile(member.entry))
    if not member.entry.flag_bits & 1:
        return cast(IO[bytes], archive.open(member.entry))
    password = os.environ.get(password_env, "") if password_env else ""
    if not password:
        where = f"environment variable {password_env}" if password_env else "card's password_env"
        raise DataError(
            f"{archive.fp.name}: member {shown(member.name)}: is encrypted and the {where} "
            "is not set"
        )
    return cast(IO[bytes], archive.open(member.entry, pwd=password.encode()))


def damage() -> tuple[type[Exception], ...]:
    """Return what reading a bad archive raises; pyzipper's error is a class of its own."""
    module = sys.modules.get("pyzipper")
    return (*_DAMAGED, module.BadZipFile) if module else _DAMAGED


def reason(error: Exception, password_env: str | None) -> str:
    """Return in words why an archive could not be read."""
    text = redact(str(error)).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, RuntimeError) and "password" in text.lower():
        return f"the password in environment variable {password_env} is wrong"
    if isinstance(error, NotImplementedError):
        return f"{text}; unpack it by hand, for example by 7-Zip"
    return f"cannot be read ({text}); the archive is damaged or of another kind"


def shown(name: str) -> str:
    """Return a member's name fit for a message, whatever it holds."""
    return ascii(name if len(name) <= 200 else f"{name[:200]}...")
