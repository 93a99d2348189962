"""Archives are unpacked whole or not at all, and never outside of their folder."""

from __future__ import annotations

import builtins
import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdpipe.data.acquisition import archive as module
from kdpipe.data.acquisition.archive import MARKER, unpack
from kdpipe.errors import ConfigError, DataError

FILES = {"Task/a.nii": b"a" * 5000, "Task/labels Tr/b.nii": b"", "Task/dataset.json": b"{}"}
PASSWORD = "canary-42-password"


def tar_bytes(*entries: tarfile.TarInfo | tuple[str, bytes], **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                tar.addfile(info, io.BytesIO(entry[1]))
    return buffer.getvalue()


def odd(name: str, kind: bytes, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, mode
    return info


def zip_bytes(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = 8) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore")  # about duplicates
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def zip_entry(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def saved(folder: Path, content: bytes, name: str = "set.arc") -> Path:
    file = folder / name
    file.write_bytes(content)
    return file


def tree(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != MARKER]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def refused(folder: Path, content: bytes, reason: str, **options: Any) -> str:
    """Assert that an archive is refused for a reason and leaves nothing behind."""
    work = folder / "work"
    work.mkdir()
    file = saved(work, content)
    with pytest.raises(DataError, match=reason) as caught:
        unpack(file, work / "into", **options)
    assert str(file) in str(caught.value)
    assert {entry.name for entry in work.iterdir()} == {"set.arc", "into.lock"}
    assert [entry.name for entry in folder.iterdir()] == ["work"]
    return str(caught.value)


TAR = tar_bytes(*FILES.items())
PACKED = {
    "tar": TAR,
    "gz": gzip.compress(TAR),
    "bz2": bz2.compress(TAR),
    "xz": lzma.compress(TAR),
    "zip": zip_bytes(*FILES.items()),
    "stored zip": zip_bytes(*FILES.items(), method=0),
}


@pytest.mark.parametrize("kind", PACKED)
def test_unpacks(tmp_path: Path, kind: str) -> None:
    file = saved(tmp_path, PACKED[kind])
    assert unpack(file, tmp_path / "deep" / "into") == sorted(FILES)
    assert tree(tmp_path / "deep" / "into") == FILES
    left = {entry.name for entry in (tmp_path / "deep").iterdir()}
    assert left == {"into", "into.lock"}


def test_the_same_archive_is_not_unpacked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, into = saved(tmp_path, TAR), tmp_path / "into"
    unpack(file, into)
    monkeypatch.setattr(module, "_extract", None)
    assert unpack(file, into) == sorted(FILES)
    monkeypatch.undo()
    unpack(file, into, exclude=["*.json"])  # another exclude: again
    assert "Task/dataset.json" not in tree(into)
    unpack(saved(tmp_path, tar_bytes(("other", b"1"))), into)  # another archive: replaced
    assert tree(into) == {"other": b"1"}


def test_a_provenance_that_fits_saves_hashing(tmp_path: Path) -> None:
    file = saved(tmp_path, TAR)
    note = tmp_path / "set.arc.provenance.json"
    note.write_text(f'{{"bytes": {len(TAR)}, "sha256": "known"}}')
    assert module._sha256(file) == "known"
    note.write_text('{"bytes": 1, "sha256": "known"}')
    assert len(module._sha256(file)) == 64


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    (into / "mine").touch()
    with pytest.raises(DataError, match="not unpacked here"):
        unpack(saved(tmp_path, TAR), into)
    (into / "mine").unlink()
    assert unpack(saved(tmp_path, TAR), into) == sorted(FILES)  # an empty folder is no loss


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "into.extracting-abc" / "fresh"
    left.mkdir(parents=True)
    unpack(saved(tmp_path, TAR), tmp_path / "into")
    assert not left.parent.exists()


def test_modes_are_plain(tmp_path: Path) -> None:
    folder = odd("d", tarfile.DIRTYPE, mode=0o2700)
    into = tmp_path / "into"
    file = saved(tmp_path, tar_bytes(folder, odd("d/f", tarfile.REGTYPE, mode=0o4777)))
    before = os.umask(0o077)
    try:
        unpack(file, into)
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE((into / path).stat().st_mode) for path in (".", "d", "d/f")}
    assert modes == {".": 0o755, "d": 0o755, "d/f": 0o644}


JUNK = ("._a.nii", "Task/._a.nii", ".DS_Store", "Task/.DS_Store", "__MACOSX/x", "__MACOSX/../../x")


def test_junk_and_the_excluded_are_skipped(tmp_path: Path) -> None:
    excluded = odd("media/nas/link", tarfile.SYMTYPE, "/etc/passwd")
    content = tar_bytes(*((name, b"junk") for name in JUNK), excluded, *FILES.items())
    into = tmp_path / "into"
    assert unpack(saved(tmp_path, content), into, exclude=["media/*"]) == sorted(FILES)
    packed = zip_bytes(*((name, b"junk") for name in JUNK), *FILES.items())
    assert unpack(saved(tmp_path, packed), into) == sorted(FILES) == sorted(tree(into))


def test_a_root_with_blanks_and_a_leading_dot_are_fine(tmp_path: Path) -> None:
    names = ["./m2cai seg /train. /a", "./m2cai seg /b", "./", "./m2cai seg /"]
    info = [odd(name, tarfile.DIRTYPE) if name.endswith("/") else (name, b"1") for name in names]
    got = unpack(saved(tmp_path, tar_bytes(*info, *info[2:])), tmp_path / "into")
    assert got == ["m2cai seg /b", "m2cai seg /train. /a"]


def test_backslashes_separate_folders(tmp_path: Path) -> None:
    content = zip_bytes(("a/b", b"1")).replace(b"a/b", b"a\\b")
    assert unpack(saved(tmp_path, content), tmp_path / "into") == ["a/b"]


NAMES = {
    "/etc/passwd": "an absolute path",
    "//host/share": "an absolute path",
    "C:/x": "an absolute path",
    "c:x": "an absolute path",
    "\\x": "an absolute path",
    "../x": r"a path with '\.\.'",
    "a/../../x": r"a path with '\.\.'",
    "a/..": r"a path with '\.\.'",
    "..\\x": r"a path with '\.\.'",
    "a\nb": "control characters",
    "a\x1b[2Jb": "control characters",
    "a\x7fb": "control characters",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pack", [tar_bytes, zip_bytes])
def test_hostile_names(tmp_path: Path, name: str, pack: Callable[..., bytes]) -> None:
    message = refused(tmp_path, pack(("fine", b"1"), (name, b"evil")), NAMES[name])
    assert ascii(name) in message and "\x1b" not in message


def test_names_with_nul_or_undecodable_bytes(tmp_path: Path) -> None:
    for number, content in enumerate(
        (
            zip_bytes(("aXb", b"1")).replace(b"aXb", b"a\0b"),
            tar_bytes(("caf\udce9", b"1"), errors="surrogateescape", format=tarfile.GNU_FORMAT),
        )
    ):
        (tmp_path / str(number)).mkdir()
        refused(tmp_path / str(number), content, "control characters or undecodable")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (tarfile.SYMTYPE, "is a link"),
        (tarfile.LNKTYPE, "is a link"),
        (tarfile.CHRTYPE, "is a device or a pipe"),
        (tarfile.BLKTYPE, "is a device or a pipe"),
        (tarfile.FIFOTYPE, "is a device or a pipe"),
        (b"Z", "is of an unknown kind"),
    ],
)
def test_links_and_devices_in_a_tar(tmp_path: Path, kind: bytes, reason: str) -> None:
    content = tar_bytes(("fine", b"1"), odd("bad", kind, "fine"), ("bad/x", b"1"))
    refused(tmp_path, content, f"member 'bad': {reason}")


@pytest.mark.parametrize(
    ("mode", "reason"), [(stat.S_IFLNK, "is a link"), (stat.S_IFIFO, "is a device or a pipe")]
)
def test_links_and_pipes_in_a_zip(tmp_path: Path, mode: int, reason: str) -> None:
    refused(tmp_path, zip_bytes((zip_entry("bad", mode | 0o777), b"/etc")), f"'bad': {reason}")


@pytest.mark.parametrize(
    "names",
    [
        ("a/b.nii", "a/b.nii"),
        ("a/b.nii", "A/B.NII"),
        ("straße", "STRASSE"),
        ("caf\u00e9", "cafe\u0301"),
        ("a/b", "a/b."),
        ("a", "a/b"),
        ("a/b", "a"),
        ("A/b", "a"),
    ],
)
@pytest.mark.parametrize("pack", [tar_bytes, zip_bytes])
def test_names_that_collide(
    tmp_path: Path, names: tuple[str, str], pack: Callable[..., bytes]
) -> None:
    content = pack(*((name, b"1") for name in names))
    refused(tmp_path, content, "comes twice|needs a folder where there is a file")


def test_sizes_are_counted_while_writing(tmp_path: Path) -> None:
    bomb = zip_bytes(("bomb", bytes(50_000_000)))
    assert len(bomb) < 100_000
    refused(tmp_path, bomb, "'bomb': the files exceed 1,000,000 bytes", max_bytes=1_000_000)
    sparse = "a tar that is small for its content"
    packed = gzip.compress(tar_bytes(("a", bytes(600_000)), ("b", bytes(600_000))))
    (tmp_path / sparse).mkdir()
    refused(tmp_path / sparse, packed, "'b': the files exceed", max_bytes=1_000_000)


def test_a_size_in_a_zip_header_that_lies(tmp_path: Path) -> None:
    content = bytearray(zip_bytes(("bomb", bytes(5_000_000))))
    central = content.rindex(b"PK\x01\x02")
    struct.pack_into("<I", content, central + 24, 10)
    refused(tmp_path, bytes(content), "member 'bomb': cannot be read", max_bytes=1_000_000)


def test_too_many_members(tmp_path: Path) -> None:
    content = tar_bytes(*((f"._{number}", b"") for number in range(11)))
    refused(tmp_path, content, "more than 10 members", max_members=10)


def test_a_header_that_would_fill_the_memory(tmp_path: Path) -> None:
    huge = odd("x", tarfile.XHDTYPE)
    huge.size = 1 << 31
    header = huge.tobuf(tarfile.USTAR_FORMAT)
    refused(tmp_path, tar_bytes(("a", b"1"))[:1024] + header, "a header of 2,147,483,648 bytes")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(TAR[:3000], "unexpected end of data", id="tar cut in a member"),
        pytest.param(TAR[: 512 + 5120], "cut off or damaged", id="tar cut between members"),
        pytest.param(
            TAR[: 512 + 5120] + b"\x07" * 512 + TAR[512 + 5120 + 512 :],
            "cut off or damaged",
            id="tar with a bad header",
        ),
        pytest.param(gzip.compress(TAR)[:-20], "cannot be read", id="gz cut"),
        pytest.param(PACKED["zip"][:-30], "cannot be read", id="zip cut"),
        pytest.param(
            PACKED["stored zip"].replace(b"aaaa", b"aaab"), "Bad CRC-32", id="zip with bad bytes"
        ),
        pytest.param(b"neither", "cannot be read", id="neither"),
        pytest.param(b"", "cannot be read", id="empty"),
    ],
)
def test_damaged_archives(tmp_path: Path, content: bytes, reason: str) -> None:
    refused(tmp_path, content, reason)


def test_a_compression_that_python_lacks(tmp_path: Path) -> None:
    content = bytearray(zip_bytes(("a", b"12345")))
    for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        struct.pack_into("<H", content, content.index(mark) + offset, 9)  # Deflate64
    refused(tmp_path, bytes(content), "not supported; unpack it by hand")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = module._Writer._create

    def onto_full(self: Any, relative: Any) -> Path:
        path = create(self, relative)
        self._handle = open("/dev/full", "wb")  # noqa: SIM115
        return path

    monkeypatch.setattr(module._Writer, "_create", onto_full)
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(DataError, match="the disk is full"):
        unpack(saved(work, TAR), work / "into")
    assert {entry.name for entry in work.iterdir()} == {"set.arc", "into.lock"}


def test_an_archive_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        unpack(tmp_path / "missing.tar", tmp_path / "into")


def aes_bytes(password: str = PASSWORD) -> bytes:
    pyzipper = pytest.importorskip("pyzipper")
    buffer = io.BytesIO()
    options = {"compression": pyzipper.ZIP_DEFLATED, "encryption": pyzipper.WZ_AES}
    with pyzipper.AESZipFile(buffer, "w", **options) as archive:
        archive.setpassword(password.encode())
        for name, content in FILES.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["zip_aes", "zip", None])
def test_aes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Any) -> None:
    file = saved(tmp_path, aes_bytes())
    monkeypatch.setenv("SET_PASSWORD", PASSWORD)
    got = unpack(file, tmp_path / "into", format=format, password_env="SET_PASSWORD")
    assert got == sorted(FILES) and tree(tmp_path / "into") == FILES
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert PASSWORD.encode() not in everything


def test_aes_with_a_wrong_password_and_with_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = aes_bytes()
    for name in "abc":
        (tmp_path / name).mkdir()
    monkeypatch.setenv("SET_PASSWORD", "not the one, canary")
    reason = "the password in environment variable SET_PASSWORD is wrong"
    message = refused(tmp_path / "a", content, reason, password_env="SET_PASSWORD")
    assert "canary" not in message
    monkeypatch.setenv("SET_PASSWORD", PASSWORD)
    start = content.index(b"Task/a.nii") + 60
    bad = content[:start] + bytes([content[start] ^ 1]) + content[start + 1 :]
    refused(tmp_path / "b", bad, "Task/a.nii.*cannot be read", password_env="SET_PASSWORD")


@pytest.mark.parametrize("given", [{"password_env": "SET_PASSWORD"}, {}])
def test_an_encrypted_member_without_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    monkeypatch.delenv("SET_PASSWORD", raising=False)
    content = bytearray(zip_bytes(("a", b"12345")))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + offset] |= 1
    variable = "environment variable SET_PASSWORD" if given else "password_env"
    refused(tmp_path, bytes(content), f"'a': is encrypted and the .*{variable}", **given)


def test_pyzipper_is_asked_for_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = aes_bytes()
    original = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "pyzipper":
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="pip install pyzipper"):
        unpack(saved(tmp_path, content), tmp_path / "into")
    assert unpack(saved(tmp_path, PACKED["zip"]), tmp_path / "into") == sorted(FILES)


def test_two_processes_unpack_once(tmp_path: Path) -> None:
    file = saved(tmp_path, tar_bytes(*((f"{number}.nii", b"1" * 2000) for number in range(2000))))
    code = (
        "import sys; from pathlib import Path; from kdpipe.data.acquisition.archive import unpack;"
        "print(len(unpack(Path(sys.argv[1]), Path(sys.argv[2]))))"
    )
    command = [sys.executable, "-c", code, str(file), str(tmp_path / "into")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate(timeout=20)[0] for process in both] == [b"2000\n"] * 2
    assert len(tree(tmp_path / "into")) == 2000
