"""Keep tokens out of logs and files, and send each only to the host it belongs to."""

from __future__ import annotations

import logging
import os
import re
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from requests import PreparedRequest
from requests.auth import AuthBase, HTTPBasicAuth
from requests.utils import get_auth_from_url

from kdpipe.errors import ConfigError

BEARER = {"huggingface.co": "HF_TOKEN", "zenodo.org": "ZENODO_TOKEN"}  # host -> variable
SECRETS = {*BEARER.values(), "SYNAPSE_AUTH_TOKEN", "KAGGLE_API_TOKEN", "KAGGLE_KEY"}
_SECRET_ENDINGS = ("_TOKEN", "_PASSWORD", "_SECRET")
_SHORTEST = 6  # redacting shorter values would mangle ordinary words
# What names a file in a query; everything else may be a signature or a token.
_HARMLESS = {"download", "export", "format", "id", "persistentId", "raw", "version", "versionId"}


def redact(text: str) -> str:
    """Replace the values of all secret environment variables in `text` by ``***``."""
    for name, value in os.environ.items():
        if (name in SECRETS or name.endswith(_SECRET_ENDINGS)) and len(value) >= _SHORTEST:
            for form in (value, value.strip(), quote(value, safe="")):
                text = text.replace(form, "***")
    return text


def public_url(url: str) -> str:
    """Return `url` without user, password, fragment and all but the harmless queries."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    query = [pair for pair in parse_qsl(parts.query) if pair[0] in _HARMLESS]
    return redact(urlunsplit((parts.scheme, host, parts.path, urlencode(query), "")))


class Redact(logging.Filter):
    """Replace secrets in log records; it belongs on handlers, where all loggers pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record; let it pass."""
        record.msg, record.args = redact(record.getMessage()), None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = redact(record.exc_text)
        return True


def redact_logs() -> None:
    """Put a `Redact` filter on every handler of the root logger that has none."""
    for handler in logging.getLogger().handlers:
        if not any(isinstance(known, Redact) for known in handler.filters):
            handler.addFilter(Redact())


class Credentials(AuthBase):
    """Who we are, for the host that was asked first; nobody for those it redirects to.

    Given for every request, because without it `requests` would send what it finds in ~/.netrc.
    """

    def __init__(self, url: str):
        self.host = urlsplit(url).hostname

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        parts = urlsplit(request.url or "")
        if parts.hostname != self.host:
            return request
        user, password = get_auth_from_url(str(request.url))
        variable = BEARER.get(str(parts.hostname))
        if user:
            HTTPBasicAuth(user, password)(request)
        elif variable and parts.scheme == "https" and (token := _token(variable)):
            request.headers["Authorization"] = f"Bearer {token}"
        return request


def _token(variable: str) -> str:
    token = os.environ.get(variable, "").strip()
    if token and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ConfigError(f"environment variable {variable}: no token (blanks or odd characters)")
    return token
