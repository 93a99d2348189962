"""JSON that the stages of the graph hand to each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kdpipe.errors import ConfigError


def read_object(path: Path, *needed: str) -> dict[str, Any]:
    """Read a JSON object that must have the keys `needed`.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(content, dict) or not content.keys() >= set(needed):
        wanted = ", ".join(needed) or "a JSON object"
        raise ConfigError(f"{path}: not the settings of this stage, {wanted} expected")
    return content
