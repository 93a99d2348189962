"""Digests that decide what is stale: of configuration slices and of the code that a stage runs.

Snakemake does not see edits in imported modules. Each rule therefore carries a digest of the
modules that its command runs: the import closure of the stage's entry modules within
kdpipe's packages (catalogues, engines, report), plus the catalogue entries that the cell names.
Files directly in ``kdpipe/`` are left out: what configuration and cards decide reaches a stage
through ``run.json``, and paths, progress and messages change no value. Comments, docstrings and
layout do not count: the digest is of the syntax tree.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from kdpipe.source_facts import SourceFacts, keep_facts, source_facts

PACKAGE = Path(__file__).parent


def canonical(value: Any) -> str:
    """Return JSON in which neither key order nor layout can differ."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(*parts: Any) -> str:
    """Return the SHA-256 (hex) of the canonical form of `parts`."""
    return hashlib.sha256(canonical(parts).encode()).hexdigest()


def file_digest(path: Path | str) -> str:
    """Return the SHA-256 (hex) of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def quick_digest(path: Path | str) -> str:
    """Return the SHA-256 (hex) of a file's size and last mebibyte.

    What torch saves ends with the checksums of all its parts, so their change is seen too.
    """
    with open(path, "rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 2**20))
        return hashlib.sha256(size.to_bytes(8) + stream.read()).hexdigest()


@functools.cache
def code_digest(*modules: str) -> str:
    """Return a digest of the code of `modules` and of all that they import in the packages."""
    closure = import_closure(modules)
    found = digest([[name, _facts(name).digest] for name in sorted(closure)])[:16]
    keep_facts()
    return found


def import_closure(modules: Iterable[str]) -> set[str]:
    """Return the modules of kdpipe's packages that `modules` import, themselves included.

    Raises:
        ModuleNotFoundError: if one of `modules` has no file.
    """
    todo, closure = list(modules), set[str]()
    while todo:
        name = todo.pop()
        if name not in closure:
            if _file(name) is None:
                raise ModuleNotFoundError(f"no module {name!r} in {PACKAGE}")
            closure.add(name)
            # of the plain modules on the first floor none counts, see above
            todo.extend(n for n in _facts(name).imports if n.count(".") >= 2 and _file(n))
    return closure


@functools.cache
def _facts(module: str) -> SourceFacts:
    file = _file(module)
    assert file is not None, module
    return source_facts(module, file)


def _file(module: str) -> Path | None:
    if not module.startswith("kdpipe."):
        return None
    file = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return file if file.is_file() else None


def environment() -> dict[str, str]:
    """Return the versions that a result depends on, without importing the packages."""
    packages = ("torch", "monai", "numpy", "scipy", "SimpleITK", "kdpipe")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {"python": sys.version.split()[0], "machine": platform.machine(), **versions}
