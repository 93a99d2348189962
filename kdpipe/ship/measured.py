"""What is known of a cell without running it: the files beside its model, and their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdpipe.errors import ConfigError, DataError
from kdpipe.json_files import read_object

Facts = Mapping[str, Any]
#: name of a cost -> where ``profile.json`` has it
COSTS = {
    "parameters": ("parameters",),
    "macs": ("macs",),
    "cpu_ms": ("cpu", "latency_ms"),
    "cpu_mb": ("cpu", "peak_mb"),
    "gpu_ms": ("cuda", "latency_ms"),
    "gpu_mb": ("cuda", "peak_mb"),
}


def read_facts(file: Path, *needed: str) -> dict[str, Any]:
    """Read a JSON file of an earlier stage.

    Raises:
        DataError: it is not there, or lacks a key.
    """
    try:
        return read_object(file, *needed)
    except ConfigError as error:  # no person has written it
        raise DataError(f"{error}; delete it and run again") from None


def read_costs(profile: Path) -> dict[str, float | None]:
    """Return what a network's window costs, by the names in `COSTS`; None where not measured.

    Raises:
        DataError: there is no ``profile.json`` in the folder, or it is unreadable.
    """
    facts = read_facts(profile / "profile.json", "parameters", "cpu")
    return {name: _look_up(facts, path) for name, path in COSTS.items()}


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def _look_up(facts: Any, path: tuple[str, ...]) -> float | None:
    for key in path:
        facts = facts.get(key) if isinstance(facts, Mapping) else None
    return facts if isinstance(facts, int | float) else None
