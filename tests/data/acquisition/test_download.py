"""Downloads survive bad servers and killed processes, verify what they got, and leak no token."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import requests
from requests.adapters import HTTPAdapter

from kdpipe.data.acquisition import _part, _transfer
from kdpipe.data.acquisition._secrets import Redact, public_url, redact
from kdpipe.data.acquisition._transfer import Patience
from kdpipe.data.acquisition.download import LEDGER, download
from kdpipe.errors import ConfigError, DataError
from kdpipe.sources import Archive

BODY = random.Random(0).randbytes(3_000_000)
OTHER = random.Random(1).randbytes(3_000_000)
QUICK = Patience(timeout=10.0, connect=2.0, tries=3, backoff=0.01, longest=2.0)
CANARY = "hf_canary_7c1d+/x"


@dataclass
class Reply:
    """What the server does with one request."""

    body: bytes = BODY
    etag: str | None = '"one"'
    modified: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None  # bytes sent of the body before the connection ends
    stall: bool = False  # instead of ending the connection
    ranges: bool = True
    if_range: bool = True
    length: bool = True
    pause: float = 0.0  # before each 64 KiB


@dataclass
class Request:
    """What the server was asked."""

    path: str
    headers: dict[str, str]


class Server(ThreadingHTTPServer):
    """Replies by plan: the replies to a path one after the other, the last one for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: dict[str, list[Reply]] = {}
        self.asked: list[Request] = []
        self.sent: list[int] = []
        self.stopped = threading.Event()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_port}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that were killed are no news."""


class Handler(BaseHTTPRequestHandler):
    """See `Reply`."""

    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.server.asked.append(
            Request(self.path, {k.lower(): v for k, v in self.headers.items()})
        )
        replies = self.server.plan.get(urlsplit(self.path).path, [Reply(status=404)])
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        if reply.status != 200:
            self.send_response(reply.status)
            for name, value in {"Content-Length": "0", **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            return
        start = self._start(reply)
        self.send_response(206 if start else 200)
        if start:
            size = len(reply.body)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if reply.length:
            self.send_header("Content-Length", str(len(reply.body) - start))
        for name, value in {"ETag": reply.etag, "Last-Modified": reply.modified}.items():
            if value:
                self.send_header(name, value)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self._send(reply, start)

    def _start(self, reply: Reply) -> int:
        wanted, condition = self.headers.get("Range"), self.headers.get("If-Range")
        if not wanted or not reply.ranges:
            return 0
        if reply.if_range and condition and condition not in (reply.etag, reply.modified):
            return 0
        return int(wanted.removeprefix("bytes=").rstrip("-"))

    def _send(self, reply: Reply, start: int) -> None:
        end = len(reply.body) if reply.cut is None else reply.cut
        self.server.sent.append(0)
        entry = len(self.server.sent) - 1
        for position in range(start, end, 65536):
            time.sleep(reply.pause)
            piece = reply.body[position : min(position + 65536, end)]
            self.wfile.write(piece)
            self.server.sent[entry] += len(piece)
        if reply.stall:
            self.wfile.flush()
            self.server.stopped.wait(20)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield made
        made.stopped.set()
        made.shutdown()


def archive(*urls: str, body: bytes = BODY, status: str = "publisher", **changes: Any) -> Archive:
    known = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    given = {"name": "set.tar", "urls": urls, "checksum_status": status, **known, **changes}
    return Archive.model_validate(given)


UNKNOWN = {"bytes": None, "sha256": None, "status": "record_on_first_use"}


def get(wanted: Archive, folder: Path, mirror: str | None = None, **changes: Any) -> Path:
    return download(wanted, folder, mirror=mirror, **{"patience": QUICK, **changes})


def provenance(target: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(Path(f"{target}.provenance.json").read_text())
    return record


def ranges(server: Server) -> list[str | None]:
    return [request.headers.get("range") for request in server.asked]


def test_downloads_once_and_notes_where_from(server: Server, tmp_path: Path) -> None:
    server.plan["/set.tar"] = [Reply()]
    target = get(archive(server.url("/set.tar?token=abc&download=1")), tmp_path / "new" / "kits")
    assert target == tmp_path / "new" / "kits" / "set.tar" and target.read_bytes() == BODY
    record = provenance(target)
    assert record.pop("time").endswith("+00:00")
    assert record == {
        "url": server.url("/set.tar?download=1"),
        "etag": '"one"',
        "bytes": len(BODY),
        "md5": hashlib.md5(BODY).hexdigest(),
        "sha256": hashlib.sha256(BODY).hexdigest(),
        "checksum_status": "publisher",
    }
    names = {file.name for file in target.parent.iterdir()}
    assert names == {"set.tar", "set.tar.provenance.json", "set.tar.lock"}
    get(archive(server.url("/set.tar")), target.parent)
    assert len(server.asked) == 1


def test_resumes_a_body_that_broke_off(server: Server, tmp_path: Path) -> None:
    server.plan["/set.tar"] = [Reply(cut=1_000_000), Reply(cut=2_000_000), Reply()]
    assert get(archive(server.url("/set.tar")), tmp_path).read_bytes() == BODY
    assert ranges(server) == [None, "bytes=1000000-", "bytes=2000000-"]
    assert [request.headers.get("if-range") for request in server.asked] == [None, '"one"', '"one"']
    assert sum(server.sent) == len(BODY)


def test_resumes_after_a_stall(server: Server, tmp_path: Path) -> None:
    server.plan["/set.tar"] = [Reply(cut=1_000_000, stall=True), Reply()]
    patience = replace(QUICK, timeout=0.5)
    target = get(archive(server.url("/set.tar")), tmp_path, patience=patience)
    assert target.read_bytes() == BODY and ranges(server) == [None, "bytes=1000000-"]


@pytest.mark.parametrize("if_range", [True, False], ids=["answers 200", "answers 206"])
def test_starts_anew_when_the_etag_changes(server: Server, tmp_path: Path, if_range: bool) -> None:
    new = Reply(OTHER, '"two"', if_range=if_range)
    server.plan["/set.tar"] = [Reply(cut=1_000_000), new]
    target = get(archive(server.url("/set.tar"), **UNKNOWN), tmp_path)  # no sum would tell
    assert target.read_bytes() == OTHER and provenance(target)["etag"] == '"two"'
    assert ranges(server)[1] == "bytes=1000000-" and len(server.asked) == (2 if if_range else 3)


def test_starts_anew_when_ranges_are_ignored(server: Server, tmp_path: Path) -> None:
    server.plan["/set.tar"] = [Reply(cut=1_000_000), Reply(ranges=False)]
    assert get(archive(server.url("/set.tar")), tmp_path).read_bytes() == BODY
    assert server.sent == [1_000_000, len(BODY)]


@pytest.mark.parametrize("known", [True, False], ids=["checksum known", "checksum unknown"])
def test_joins_bytes_without_an_etag_only_if_it_can_check(
    server: Server, tmp_path: Path, known: bool
) -> None:
    server.plan["/set.tar"] = [Reply(etag=None, cut=1_000_000), Reply(etag=None)]
    get(archive(server.url("/set.tar"), **({} if known else UNKNOWN)), tmp_path)
    assert ranges(server)[1] == ("bytes=1000000-" if known else None)


def test_resumes_by_date_without_a_strong_etag(server: Server, tmp_path: Path) -> None:
    reply = {"etag": 'W/"x"', "modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
    server.plan["/set.tar"] = [Reply(cut=1_000_000, **reply), Reply(**reply)]
    get(archive(server.url("/set.tar"), **UNKNOWN), tmp_path)
    assert server.asked[1].headers["if-range"] == reply["modified"]
    assert server.sent == [1_000_000, len(BODY) - 1_000_000]


def test_takes_a_body_of_unknown_length(server: Server, tmp_path: Path) -> None:
    server.plan["/set.tar"] = [Reply(length=False, cut=1_000_000), Reply(length=False)]
    assert get(archive(server.url("/set.tar")), tmp_path).read_bytes() == BODY
    server.plan["/b.tar"] = [Reply(length=False)]
    unknown = archive(server.url("/b.tar"), name="b.tar", **UNKNOWN)
    assert get(unknown, tmp_path).read_bytes() == BODY


def test_goes_on_after_bytes_rotted_in_the_part(server: Server, tmp_path: Path) -> None:
    server.plan["/set.tar"] = [Reply(cut=1_000_000), Reply(status=404)]
    with pytest.raises(DataError, match="HTTP 404"):
        get(archive(server.url("/set.tar")), tmp_path)
    part = tmp_path / "set.tar.part"
    part.write_bytes(bytes(part.stat().st_size))
    server.plan["/set.tar"] = [Reply()]
    assert get(archive(server.url("/set.tar")), tmp_path).read_bytes() == BODY
    assert ranges(server)[-2:] == ["bytes=1000000-", None]


@pytest.mark.parametrize("status", [404, 403, 410])
def test_asks_the_next_source(server: Server, tmp_path: Path, status: int) -> None:
    server.plan |= {"/a": [Reply(status=status)], "/b": [Reply()]}
    target = get(archive(server.url("/a"), server.url("/b")), tmp_path)
    assert [request.path for request in server.asked] == ["/a", "/b"]
    assert provenance(target)["url"] == server.url("/b")


def test_gives_up_after_failures_in_a_row_and_tells_all(server: Server, tmp_path: Path) -> None:
    server.plan |= {"/a": [Reply(status=500)], "/b": [Reply(cut=100)]}
    dead = f"http://127.0.0.1:{_free_port()}/c"
    with pytest.raises(DataError) as caught:
        get(archive(server.url("/a"), server.url("/b"), dead), tmp_path)
    assert "/a: HTTP 500, 3 times in a row" in str(caught.value)
    assert "/b: broke off after 100 bytes, 3 times" in str(caught.value)
    assert "/c: the connection failed (ConnectionError)" in str(caught.value)
    assert f"put it here: {tmp_path / 'set.tar'}" in str(caught.value)
    assert [request.path for request in server.asked].count("/a") == 3


def _free_port() -> int:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as passing:
        return passing.server_port


def test_waits_as_asked_and_longer_each_time(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(_transfer, "time", SimpleNamespace(sleep=pauses.append))
    asks = Reply(status=503, headers={"Retry-After": "2"})
    server.plan["/set.tar"] = [asks, *[Reply(status=503)] * 3, Reply()]
    patience = Patience(timeout=1, tries=6, backoff=0.2, longest=2)
    get(archive(server.url("/set.tar")), tmp_path, patience=patience)
    assert pauses[0] == 2
    for number, pause in enumerate(pauses[1:], start=1):
        assert 0.1 * 2**number <= pause <= 0.2 * 2**number
    assert _transfer._retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert _transfer._retry_after("soon") == 0


def test_leaves_a_server_that_asks_for_too_much_time(server: Server, tmp_path: Path) -> None:
    asks = Reply(status=429, headers={"Retry-After": "3600"})
    server.plan |= {"/a": [asks], "/b": [Reply()]}
    get(archive(server.url("/a"), server.url("/b")), tmp_path)
    assert [request.path for request in server.asked] == ["/a", "/b"]


def test_follows_redirects_but_not_in_a_circle(server: Server, tmp_path: Path) -> None:
    server.plan |= {
        "/a": [Reply(status=302, headers={"Location": "/b"})],
        "/b": [Reply(status=307, headers={"Location": "/b"})],
        "/c": [Reply(status=301, headers={"Location": "/d?token=secret"})],
        "/d": [Reply(cut=1_000_000), Reply()],
    }
    with pytest.raises(DataError, match="redirects more than"):
        get(archive(server.url("/a")), tmp_path)
    target = get(archive(server.url("/c")), tmp_path)
    assert provenance(target)["url"] == server.url("/c") and ranges(server)[-1] == "bytes=1000000-"


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://[bad"])
def test_follows_no_odd_redirect(server: Server, tmp_path: Path, location: str) -> None:
    server.plan["/a"] = [Reply(status=302, headers={"Location": location})]
    with pytest.raises(DataError, match="not as safe|cannot be asked"):
        get(archive(server.url("/a")), tmp_path)


def test_refuses_a_web_page_and_another_size(server: Server, tmp_path: Path) -> None:
    server.plan |= {
        "/a": [Reply(b"<html>please log in", headers={"Content-Type": "text/html"})],
        "/b": [Reply(BODY[:-1])],
    }
    with pytest.raises(DataError, match="answers with a web page"):
        get(archive(server.url("/a"), **UNKNOWN), tmp_path)
    with pytest.raises(DataError, match="offers 2,999,999 bytes instead of 3,000,000"):
        get(archive(server.url("/b")), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["set.tar.lock"]


@pytest.mark.parametrize("status", ["publisher", "verified_here"])
@pytest.mark.parametrize("accept", [False, True])
def test_a_firm_checksum_cannot_be_overridden(
    server: Server, tmp_path: Path, status: str, accept: bool
) -> None:
    server.plan["/set.tar"] = [Reply(OTHER)]
    with pytest.raises(DataError, match="sha256 is .* expected") as caught:
        get(archive(server.url("/set.tar"), status=status), tmp_path, accept_checksum=accept)
    assert "accept_checksum" not in str(caught.value)
    assert not (tmp_path / "set.tar").exists() and not (tmp_path / LEDGER).exists()


def test_wrong_bytes_of_one_source_lead_to_the_next(server: Server, tmp_path: Path) -> None:
    server.plan |= {"/a": [Reply(OTHER)], "/b": [Reply(etag='"one"')]}
    target = get(archive(server.url("/a"), server.url("/b")), tmp_path)
    assert target.read_bytes() == BODY and ranges(server) == [None, None]


def test_a_third_party_checksum_can_be_overridden(server: Server, tmp_path: Path) -> None:
    server.plan["/set.tar"] = [Reply(OTHER)]
    wanted = archive(server.url("/set.tar"), status="third_party")
    with pytest.raises(DataError, match="come from a third party.*accept_checksum"):
        get(wanted, tmp_path)
    target = get(wanted, tmp_path, accept_checksum=True)
    assert len(server.asked) == 1, "the bytes that are here were not used"
    assert target.read_bytes() == OTHER and provenance(target)["checksum_status"] == "accepted"
    assert get(wanted, tmp_path) == target  # it is recorded now
    target.unlink()
    server.plan["/set.tar"] = [Reply(OTHER[::-1], '"three"')]
    with pytest.raises(DataError, match="sha256"):
        get(wanted, tmp_path)


def test_an_unconfirmed_size_tells_how_to_override(server: Server, tmp_path: Path) -> None:
    server.plan["/set.tar"] = [Reply(BODY + b"more")]
    wanted = archive(server.url("/set.tar"), status="third_party")
    with pytest.raises(DataError, match="accept_checksum"):
        get(wanted, tmp_path)
    assert get(wanted, tmp_path, accept_checksum=True).read_bytes() == BODY + b"more"


def test_md5_is_checked_where_there_is_no_sha256(server: Server, tmp_path: Path) -> None:
    server.plan["/set.tar"] = [Reply()]
    with pytest.raises(DataError, match="md5 is .* expected 0000"):
        get(archive(server.url("/set.tar"), sha256=None, md5="0" * 32), tmp_path)
    md5 = hashlib.md5(BODY).hexdigest()
    assert get(archive(server.url("/set.tar"), sha256=None, md5=md5), tmp_path).exists()


def test_an_unknown_checksum_is_recorded_and_enforced(server: Server, tmp_path: Path) -> None:
    server.plan["/set.tar"] = [Reply()]
    wanted = archive(server.url("/set.tar"), **UNKNOWN)
    target = get(wanted, tmp_path)
    ledger = json.loads((tmp_path / LEDGER).read_text())
    assert ledger["set.tar"]["sha256"] == hashlib.sha256(BODY).hexdigest()
    target.unlink()
    server.plan["/set.tar"] = [Reply(OTHER, '"two"')]
    with pytest.raises(DataError, match="recorded at first use"):
        get(wanted, tmp_path)
    assert json.loads((tmp_path / LEDGER).read_text()) == ledger


def test_a_file_put_there_by_hand_is_verified_and_kept(server: Server, tmp_path: Path) -> None:
    wanted, target = archive(server.url("/set.tar")), tmp_path / "set.tar"
    target.write_bytes(OTHER)
    with pytest.raises(DataError, match="sha256 .* the file is left as it is"):
        get(wanted, tmp_path)
    assert target.read_bytes() == OTHER
    target.write_bytes(BODY)
    assert get(wanted, tmp_path) == target and provenance(target)["url"] is None
    target.write_bytes(BODY[:-1])  # another size: the record no longer fits
    with pytest.raises(DataError, match="2,999,999 bytes"):
        get(wanted, tmp_path)
    assert server.asked == []


def test_a_mirror_folder_goes_first(server: Server, tmp_path: Path) -> None:
    mirror, folder = tmp_path / "my mirror", tmp_path / "kits"
    (mirror / "kits").mkdir(parents=True)
    (mirror / "kits" / "set.tar").write_bytes(BODY)
    (mirror / "set.tar").write_bytes(OTHER)  # of another data set
    for number, spelling in enumerate((str(mirror), mirror.as_uri())):
        wanted = archive(server.url("/a"), name="set.tar", **UNKNOWN)
        target = get(wanted, tmp_path / str(number) / "kits", spelling)
        assert target.read_bytes() == BODY
    (mirror / "kits" / "set.tar").write_bytes(BODY[:-9])
    (mirror / "set.tar").write_bytes(BODY)
    assert get(archive(), folder, str(mirror)).read_bytes() == BODY
    assert server.asked == []


def test_a_mirror_server_goes_first(server: Server, tmp_path: Path) -> None:
    server.plan |= {"/m/set.tar": [Reply()], "/a": [Reply()]}
    target = get(archive(server.url("/a")), tmp_path / "kits", server.url("/m/?sig=geheim"))
    asked = ["/m/kits/set.tar?sig=geheim", "/m/set.tar?sig=geheim"]
    assert [request.path for request in server.asked] == asked
    assert provenance(target)["url"] == server.url("/m/set.tar")


def test_goes_on_with_the_source_of_the_part(server: Server, tmp_path: Path) -> None:
    server.plan |= {"/a": [Reply(status=500)], "/b": [Reply(cut=2_000_000), Reply(status=404)]}
    wanted = archive(server.url("/a"), server.url("/b"))
    with pytest.raises(DataError):
        get(wanted, tmp_path)
    server.plan |= {"/a": [Reply(etag='"of a"')], "/b": [Reply()]}
    assert get(wanted, tmp_path).read_bytes() == BODY
    assert server.asked[-1].path == "/b" and server.sent[-1] == 1_000_000


def test_a_full_disk_keeps_the_part(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.plan["/set.tar"] = [Reply()]
    write = _part._write

    def fill(handle: Any, chunk: bytes) -> None:
        if handle.tell() > 1_000_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(handle, chunk)

    monkeypatch.setattr(_part, "_write", fill)
    with pytest.raises(DataError, match=r"set\.tar\.part: the disk is full .* kept and resumed"):
        get(archive(server.url("/set.tar")), tmp_path)
    monkeypatch.setattr(_part, "_write", write)
    assert get(archive(server.url("/set.tar")), tmp_path).read_bytes() == BODY
    resumed = int(str(ranges(server)[1]).removeprefix("bytes=").removesuffix("-"))
    assert 1_000_000 < resumed < len(BODY)  # how much was written depends on the chunks


def test_a_device_that_is_full_is_an_error(server: Server, tmp_path: Path) -> None:
    server.plan["/set.tar"] = [Reply()]
    (tmp_path / "set.tar.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match="the disk is full"):
        get(archive(server.url("/set.tar")), tmp_path)


CHILD = """
import json, sys
from pathlib import Path
from kdpipe.sources import Archive
from kdpipe.data.acquisition.download import download
archive = Archive.model_validate(json.loads(sys.argv[1]))
download(archive, Path(sys.argv[2]), mirror=None)
"""


def child(wanted: Archive, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CHILD, wanted.model_dump_json(), str(folder)]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_killed_process_is_resumed(server: Server, tmp_path: Path) -> None:
    server.plan["/set.tar"] = [Reply(pause=0.05), Reply()]
    process = child(archive(server.url("/set.tar")), tmp_path)
    part = tmp_path / "set.tar.part"
    wait_until(lambda: part.exists() and part.stat().st_size > 500_000)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    size = part.stat().st_size
    assert size < len(BODY)
    assert get(archive(server.url("/set.tar")), tmp_path).read_bytes() == BODY
    assert ranges(server) == [None, f"bytes={size}-"]


def test_two_processes_fetch_one_file_once(server: Server, tmp_path: Path) -> None:
    server.plan["/set.tar"] = [Reply(pause=0.02)]
    processes = [child(archive(server.url("/set.tar")), tmp_path) for _ in range(2)]
    for process in processes:
        _, stderr = process.communicate(timeout=20)
        assert process.returncode == 0, stderr.decode()
    assert server.sent == [len(BODY)] and (tmp_path / "set.tar").read_bytes() == BODY


@pytest.fixture
def everywhere(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server answers for all hosts; the path it sees begins with the host's name."""

    class Reroute(HTTPAdapter):
        def send(self, request: Any, *args: Any, **options: Any) -> requests.Response:
            parts = urlsplit(request.url)
            request.url = server.url(f"/{parts.scheme}/{parts.hostname}{parts.path}?{parts.query}")
            return super().send(request, *args, **options)

    class Session(requests.Session):
        def __init__(self) -> None:
            super().__init__()
            self.mount("https://", Reroute())
            self.mount("http://", Reroute())

    monkeypatch.setattr(requests, "Session", Session)
    monkeypatch.setenv("HF_TOKEN", CANARY)
    monkeypatch.setenv("ZENODO_TOKEN", f"zenodo-{CANARY}")
    return server


def sent_tokens(server: Server) -> dict[str, str | None]:
    asked = server.asked
    return {urlsplit(each.path).path: each.headers.get("authorization") for each in asked}


def test_tokens_go_to_their_own_host_only(everywhere: Server, tmp_path: Path) -> None:
    to_store = {"Location": "https://store.example/x"}
    everywhere.plan |= {
        "/https/huggingface.co/x": [Reply(status=302, headers=to_store)],
        "/https/store.example/x": [Reply(status=403)],
        "/https/zenodo.org/x": [Reply(status=302, headers={"Location": "/y"})],
        "/https/evil.example/x": [
            Reply(status=302, headers={"Location": "https://zenodo.org/from_evil"})
        ],
    }
    hosts = ("huggingface.co", "zenodo.org", "evil.example", "huggingface.co.evil.example")
    urls = [f"https://{host}/x" for host in hosts]
    with pytest.raises(DataError):
        get(archive(*urls, "http://huggingface.co/x"), tmp_path)
    assert sent_tokens(everywhere) == {
        "/https/huggingface.co/x": f"Bearer {CANARY}",
        "/https/store.example/x": None,
        "/https/zenodo.org/x": f"Bearer zenodo-{CANARY}",
        "/https/zenodo.org/y": f"Bearer zenodo-{CANARY}",
        "/https/evil.example/x": None,
        "/https/zenodo.org/from_evil": None,
        "/https/huggingface.co.evil.example/x": None,
        "/http/huggingface.co/x": None,
    }


def test_passwords_in_an_address_go_to_that_host_and_netrc_to_none(
    everywhere: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password geheim\n")
    monkeypatch.setenv("NETRC", str(netrc))
    elsewhere = {"Location": "https://b.example/set.tar"}
    everywhere.plan |= {
        "/https/a.example/set.tar": [Reply(status=302, headers=elsewhere)],
        "/https/b.example/set.tar": [Reply()],
    }
    target = get(archive("https://me:geheim@a.example/set.tar"), tmp_path)
    assert list(sent_tokens(everywhere).values()) == ["Basic bWU6Z2VoZWlt", None]
    assert provenance(target)["url"] == "https://a.example/set.tar"


def test_never_leads_from_https_to_http(everywhere: Server, tmp_path: Path) -> None:
    to_http = {"Location": "http://a.example/set.tar"}
    everywhere.plan["/https/a.example/set.tar"] = [Reply(status=302, headers=to_http)]
    with pytest.raises(DataError, match=r"redirects to http://a\.example/set\.tar, which is not"):
        get(archive("https://a.example/set.tar"), tmp_path)
    assert len(everywhere.asked) == 1


def test_no_token_is_logged_or_written(
    everywhere: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    everywhere.plan["/https/huggingface.co/x"] = [
        Reply(cut=1_000_000),
        Reply(status=500),
        Reply(cut=2_000_000),
        Reply(status=404),
    ]
    secret = quote(CANARY, safe="")
    urls = f"https://huggingface.co/x?token={secret}", f"https://u:{secret}@b.example/{secret}"
    with pytest.raises(DataError) as caught:
        get(archive(*urls), tmp_path)
    logging.getLogger("anyone").warning("pasted %s", CANARY)
    try:
        raise ValueError(CANARY)
    except ValueError:
        logging.getLogger("anyone").exception("failed")
    texts = [str(caught.value), caplog.text, *map(str, caplog.messages)]
    texts += [file.read_bytes().decode("latin-1") for file in tmp_path.iterdir()]
    assert len(texts) > 5 and "pasted ***" in caplog.text
    assert "GET /https/huggingface.co/x?token=*** HTTP/1.1" in caplog.text
    assert not [text for text in texts if CANARY in text or secret in text]


def test_redaction_and_public_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORD_ZIP_PASSWORD", CANARY)
    monkeypatch.setenv("ANY_TOKEN", "no")  # too short to be one
    assert redact(f"a {CANARY} b hf_canary_7c1d%2B%2Fx, no") == "a *** b ***, no"
    url = "https://me:pw@host:8/a%20b?id=7&X-Amz-Signature=q&key=k#frag"
    assert public_url(url) == "https://host:8/a%20b?id=7"
    record = logging.LogRecord("x", logging.INFO, "f", 1, "%s and %d", (CANARY, 3), None)
    assert Redact().filter(record) and record.getMessage() == "*** and 3"


def test_a_token_with_odd_characters_is_named_not_shown(
    everywhere: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{CANARY}\nX: y")
    with pytest.raises(ConfigError, match="HF_TOKEN") as caught:
        get(archive("https://huggingface.co/x"), tmp_path)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("name", ["", "..", "../set.tar", "a/../b", "a//b", "/set.tar"])
def test_a_name_is_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="a name below its folder"):
        get(archive(name=name), tmp_path / "inside")
    assert list(tmp_path.iterdir()) == []


def test_an_address_is_http(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mirror"):
        get(archive(), tmp_path, "s3://bucket")
    with pytest.raises(DataError, match="the card names no address"):
        get(archive(), tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written: Not a directory"):
        get(archive(), tmp_path / "file" / "kits")
    assert os.listdir(tmp_path) == ["file"]
