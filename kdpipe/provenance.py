"""Digests that decide what is stale: of configuration slices and of the code that a stage runs.

Snakemake does not see edits in imported modules. Each rule therefore carries a digest of the
modules that its command runs: the import closure of the stage's entry modules within
kdpipe's packages (catalogues, engines, report), plus the catalogue entries that the cell names.
Files directly in ``kdpipe/`` are left out: what configuration and cards decide reaches a stage
through ``run.json``, and paths, progress and messages change no value. Comments, docstrings and
layout do not count: the digest is of the syntax tree.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

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
    return digest([[name, _tree_digest(name)] for name in sorted(closure)])[:16]


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
            todo.extend(_imports(name))
    return closure


@functools.cache
def _imports(module: str) -> frozenset[str]:
    lines = _statements(_tree(module))
    named = (name for line in lines for name in _imported_names(line, module))
    return frozenset(name for name in named if name.count(".") >= 2 and _file(name))


def _imported_names(node: ast.AST, module: str) -> Iterator[str]:
    """Yield every dotted name that an import statement of `module` may mean."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        package = module.split(".")[: -node.level] if node.level else []
        source = ".".join([*package, *filter(None, [node.module])])
        yield source
        yield from (f"{source}.{alias.name}" for alias in node.names)


def _file(module: str) -> Path | None:
    if not module.startswith("kdpipe."):
        return None
    file = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return file if file.is_file() else None


@functools.cache
def _tree(module: str) -> ast.Module:
    """The syntax tree of a module, without its docstrings."""
    file = _file(module)
    assert file is not None, module
    tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    for node in (tree, *_statements(tree)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield every statement of a module; unlike `ast.walk` it passes over the expressions."""
    for field in ("body", "orelse", "handlers", "finalbody", "cases"):
        inner = getattr(tree, field, ())
        for node in inner if isinstance(inner, list) else ():  # a lambda's body is an expression
            yield node
            yield from _statements(node)


@functools.cache
def _tree_digest(module: str) -> str:
    return hashlib.sha256(ast.dump(_tree(module)).encode()).hexdigest()


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
