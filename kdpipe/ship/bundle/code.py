"""The code that a MONAI bundle carries: of kdpipe just what its parts import, and its network.

The copy is a package with a name of its own, ``kdpipe_<digest of the code>``. So an installed
kdpipe, of whatever version, is neither needed nor ever used, and bundles of several networks and
versions can run in one process.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from torch import nn

from kdpipe.atomic import write_text
from kdpipe.provenance import PACKAGE

PARTS = "kdpipe.ship.bundle.parts"
_IMPORT = re.compile(r"^(\s*(?:from|import) )kdpipe(?=[. ])", re.MULTILINE)
_OPTIONAL = {"numba", "llvmlite"}
"""There is a path without them."""
_RUNNERS = {"pytorch-ignite": "0.5.0", "fire": "0.7.0"}
"""What MONAI's command line needs, and the version that stands for one that is not installed."""
_OWN_KEYS = {"torch", "monai", "numpy"}
"""Packages that have keys of their own in the metadata."""


def copy_code(network: str, folder: Path) -> str:
    """Write the package below `folder`, for a network of the catalogue, and return its name."""
    modules = _closure({PARTS, f"kdpipe.nets.{network}"})
    sources = {file: file.read_text(encoding="utf-8") for file in modules.values()}
    content = "\0".join(f"{file.relative_to(PACKAGE)}\0{sources[file]}" for file in sorted(sources))
    package = f"kdpipe_{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    for file, text in sources.items():
        renamed = _IMPORT.sub(rf"\g<1>{package}", text)
        write_text(folder / package / file.relative_to(PACKAGE), renamed)
    return package


def packages(network: str, built: nn.Module) -> tuple[dict[str, str], dict[str, str]]:
    """Return the packages that the bundle needs, and those that it can do without, with versions.

    PyTorch, MONAI and NumPy are not among them. The versions are the installed ones.

    Args:
        network: of the catalogue.
        built: the same, to see of which libraries its layers are.
    """
    files = _closure({PARTS, f"kdpipe.nets.{network}"}).values()
    imported = {name.partition(".")[0] for file in files for name in _imported(file)}
    layers = {type(module).__module__ for module in built.modules()}
    imported |= {name.partition(".")[0] for name in layers}
    if any('optional_import("einops' in _source(name) for name in layers):
        imported.add("einops")  # a function of it in a layer of MONAI
    own = {"kdpipe", *_OWN_KEYS, *sys.stdlib_module_names}
    known = _distributions()
    found = {name: metadata.version(known[name][0]) for name in imported - own if name in known}
    names = {known[name][0]: version for name, version in found.items() if name not in _OPTIONAL}
    optional = {name: version for name, version in found.items() if name in _OPTIONAL}
    return dict(sorted((names | _runners()).items())), optional


def _runners() -> dict[str, str]:
    versions = dict(_RUNNERS)
    for name in versions:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # it is needed to run a bundle, not to write it
            continue
    return versions


def _closure(modules: set[str]) -> dict[str, Path]:
    """Return name -> file of `modules` and all of kdpipe that they import, packages included."""
    todo, closure = list(modules), dict[str, Path]()
    while todo:
        name = todo.pop()
        file = _file(name)
        if name in closure or file is None:
            continue
        closure[name] = file
        todo += _imported(file)
        todo.append(name.rpartition(".")[0])
    return closure


def _file(module: str) -> Path | None:
    root, *parts = module.split(".")
    if root != PACKAGE.name:
        return None
    place = PACKAGE.joinpath(*parts)
    candidates = (place / "__init__.py", place.with_suffix(".py"))
    return next((file for file in candidates if file.is_file()), None)


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


@functools.cache
def _imported(file: Path) -> frozenset[str]:
    """Return every dotted name that an import statement of a file may mean."""
    names = set[str]()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def _source(module: str) -> str:
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).read_text(encoding="utf-8") if file and file.endswith(".py") else ""
