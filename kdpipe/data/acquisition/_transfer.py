"""Fetch one file over HTTP into a partial file that outlives the process, resuming it.

Libraries at hand do not do this: pooch, urlretrieve and MONAI's downloader verify but cannot
resume, the storage plug-ins of Snakemake do not resume, and 30 GB seldom arrive in one piece.
"""

from __future__ import annotations

import logging
import random
import re
import time
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.exceptions import HTTPError, ProtocolError
from urllib3.exceptions import TimeoutError as Stalled

from kdpipe.data.acquisition._files import MB
from kdpipe.data.acquisition._part import CHUNK, Part
from kdpipe.data.acquisition._secrets import Credentials, public_url
from kdpipe.progress import ProgressReport

log = logging.getLogger(__name__)
MAX_REDIRECTS = 10
_SAFE_STEPS = {("http", "http"), ("http", "https"), ("https", "https")}
_TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}


class SourceFailed(Exception):
    """This source cannot give the file; another may."""


class WrongSize(SourceFailed):
    """This source has another file than the card describes."""


class _Again(Exception):
    """A hindrance that may pass; `wait` is what the server asked for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server, in seconds."""

    timeout: float = 60.0  # without a byte: a stall
    connect: float = 20.0
    tries: int = 6  # failures in a row without progress, then the next source
    backoff: float = 1.0  # before the second try; doubles
    longest: float = 300.0  # a server that asks for more is left


def transfer(
    url: str, part: Part, patience: Patience, size: int | None = None, verifiable: bool = False
) -> None:
    """Complete `part` from a URL, or raise SourceFailed.

    Args:
        url: where the file is, http or https.
        part: what is here already.
        patience: time-outs and tries.
        size: of the whole file; a server that offers another one fails. None: not known.
        verifiable: a checksum is known, so bytes may be joined that no ETag ties together.
    """
    failures, furthest = 0, part.size
    with requests.Session() as session:
        while not part.complete:
            try:
                _attempt(session, url, part, patience, size, verifiable)
            except _Again as problem:
                failures = 1 if part.size > furthest else failures + 1
                furthest = max(furthest, part.size)
                if failures >= patience.tries:
                    raise SourceFailed(f"{problem}, {failures} times in a row") from None
                pause = patience.backoff * 2 ** (failures - 1) * random.uniform(0.5, 1.0)
                pause = max(problem.wait, min(pause, patience.longest))
                log.info("%s: %s; again in %.1f s", public_url(url), problem, pause)
                time.sleep(pause)


def _attempt(
    session: requests.Session,
    url: str,
    part: Part,
    patience: Patience,
    size: int | None,
    verifiable: bool,
) -> None:
    """Ask once, and write what comes."""
    try:
        with _answer(session, url, part.range(url, verifiable), patience) as answer:
            total = _accept(answer, url, part, patience, size)
            _receive(answer, part, size if total is None else total)
    except requests.exceptions.SSLError:
        raise SourceFailed("the server's certificate is not accepted") from None
    except (requests.Timeout, requests.ConnectionError, HTTPError) as error:
        if isinstance(error, (requests.Timeout, Stalled)):
            raise _Again("no byte came within the time-out") from None
        if isinstance(error, ProtocolError):  # in the body, for `requests` wraps those before it
            raise _Again(f"broke off after {part.size:,} bytes") from None
        raise _Again(f"the connection failed ({type(error).__name__})") from None
    except (requests.RequestException, ValueError) as error:  # its text may hold a token
        raise SourceFailed(f"cannot be asked ({type(error).__name__})") from None


def _answer(
    session: requests.Session, url: str, headers: dict[str, str], patience: Patience
) -> requests.Response:
    """Return the answer at the end of all redirects; none leads from https to http."""
    headers = {"Accept-Encoding": "identity", **headers}
    credentials = Credentials(url)
    for _ in range(MAX_REDIRECTS + 1):
        answer = session.get(
            url,
            headers=headers,
            auth=credentials,
            stream=True,
            allow_redirects=False,
            timeout=(patience.connect, patience.timeout),
        )
        if not answer.is_redirect:
            return answer
        answer.close()
        before, url = url, urljoin(url, answer.headers["Location"])
        if (urlsplit(before).scheme, urlsplit(url).scheme) not in _SAFE_STEPS:
            raise SourceFailed(f"redirects to {public_url(url)}, which is not as safe")
    raise SourceFailed(f"redirects more than {MAX_REDIRECTS} times")


def _accept(
    answer: requests.Response, url: str, part: Part, patience: Patience, size: int | None
) -> int | None:
    """Judge status and headers, ready the part, and return the whole file's size if told."""
    status, etag = answer.status_code, answer.headers.get("ETag")
    if status in _TRY_AGAIN:
        wait = _retry_after(answer.headers.get("Retry-After", ""))
        if wait > patience.longest:
            raise SourceFailed(f"HTTP {status}, asks to come back in {wait:.0f} s")
        raise _Again(f"HTTP {status}", wait)
    if status == 416 or (status == 206 and not _continues(answer, part)):
        part.stale = True
        raise _Again("the server's file changed; starting anew")
    if status not in (200, 206):
        raise SourceFailed(f"HTTP {status}")
    if "text/html" in answer.headers.get("Content-Type", "") and ".htm" not in part.name:
        raise SourceFailed("answers with a web page")
    if status == 206:
        found = answer.headers["Content-Range"].rpartition("/")[2]
    else:
        chunked = "Transfer-Encoding" in answer.headers
        found = "" if chunked else answer.headers.get("Content-Length", "")
    total = int(found) if found.isdecimal() else None
    if size is not None and total is not None and total != size:
        raise WrongSize(f"offers {total:,} bytes instead of {size:,}")
    if status == 206:
        part.resumed = True
        log.info("%s: resumed at %d MB", part.name, part.size // MB)
    else:
        modified = answer.headers.get("Last-Modified")
        part.restart(url=public_url(url), etag=etag, last_modified=modified, bytes=total)
    return total


def _continues(answer: requests.Response, part: Part) -> bool:
    """Return whether the bytes of a 206 go behind those of the part."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != part.size or part.size == 0:
        return False
    etag, known = answer.headers.get("ETag"), part.notes["etag"]
    same_size = found[2] in ("*", str(part.notes["bytes"])) or part.notes["bytes"] is None
    return same_size and (not etag or not known or etag == known)


def _receive(answer: requests.Response, part: Part, total: int | None) -> None:
    """Write the body, and raise `_Again` if it ends early."""
    label = f"download {part.name} (MB)"
    bar = ProgressReport(label, -(-total // MB), part.size // MB) if total else None
    with bar or nullcontext():
        while chunk := answer.raw.read1(CHUNK, decode_content=False):
            part.append(chunk)
            if bar and part.size // MB > bar.done:
                bar.advance(part.size // MB - bar.done)
        if total is not None and part.size < total:
            raise _Again(f"broke off after {part.size:,} bytes")
        if bar and bar.done < bar.total:
            bar.advance(bar.total - bar.done)
    if total is not None and part.size > total:
        part.stale = True
        raise _Again(f"sent {part.size:,} instead of {total:,} bytes")
    if part.notes["bytes"] != part.size:  # only the end of the body told
        part.note(bytes=part.size)


def _retry_after(value: str) -> float:
    """Return the seconds of a Retry-After header, a number or a date; 0 if it is neither."""
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0
