"""What a source file imports and a digest of its code, read from the syntax tree.

To parse two hundred files takes as long as all else in the plan of a small study. So what was found
is kept beside the byte code of this package, under the digest of each file's content.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from kdpipe.atomic import atomic_path

_KEPT = Path(__file__).parent / "__pycache__" / f"source_facts.{sys.implementation.cache_tag}.json"
_new: dict[str, Any] = {}


class SourceFacts(NamedTuple):
    """Of one module.

    Attributes:
        imports: every dotted name that an import statement may mean, in functions too.
        digest: SHA-256 of the syntax tree without docstrings, which has no comments or layout.
    """

    imports: tuple[str, ...]
    digest: str


def source_facts(module: str, file: Path) -> SourceFacts:
    """Return the facts of a module, whose dotted name decides what relative imports mean."""
    content = file.read_bytes()
    key = hashlib.sha256(content).hexdigest()
    kept = _new.get(module) or _kept().get(module)
    if kept and kept[0] == key:
        return SourceFacts(tuple(kept[1]), kept[2])
    tree = _without_docstrings(ast.parse(content, filename=str(file)))
    names = {name for line in _statements(tree) for name in _imported_names(line, module)}
    facts = SourceFacts(tuple(sorted(names)), hashlib.sha256(ast.dump(tree).encode()).hexdigest())
    _new[module] = [key, *facts]
    return facts


def keep_facts() -> None:
    """Write what was found since the last time, if the folder of byte code can be written."""
    if not _new or sys.dont_write_bytecode:
        return
    with suppress(OSError), atomic_path(_KEPT) as temporary:
        temporary.write_text(json.dumps(_kept() | _new), encoding="utf-8")
    _kept().update(_new)
    _new.clear()


@cache
def _kept() -> dict[str, Any]:
    try:
        content = json.loads(_KEPT.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _imported_names(node: ast.AST, module: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        package = module.split(".")[: -node.level] if node.level else []
        source = ".".join([*package, *filter(None, [node.module])])
        yield source
        yield from (f"{source}.{alias.name}" for alias in node.names)


def _without_docstrings(tree: ast.Module) -> ast.Module:
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
