"""The catalogues: one file an entry, found by its name, read without importing it.

``method: cwd`` is ``kdpipe/methods/cwd.py``; ``net: unet_tiny`` is ``kdpipe/nets/unet_tiny.py``.
Both import torch, which takes seconds, so a configuration is checked against the *source* of an
entry: its ``class Params`` is compiled alone, and plain class attributes are read as literals.
"""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import Field as Field  # the entries take it from here
from pydantic import ValidationError

from kdpipe.errors import ConfigError, did_you_mean
from kdpipe.schema import Strict, explain

Catalogue = Literal["methods", "nets"]
PACKAGE = Path(__file__).parent
_NOT_ENTRIES = {"base", "cost"}


class Parameters(Strict):
    """Base of every entry's ``Params``.

    The body of a ``Params`` class is compiled alone. It may use builtins, ``Literal`` and
    ``Field``, and nothing that its file imports.
    """


def names(catalogue: Catalogue) -> list[str]:
    """Return the sorted names of all entries of `catalogue`."""
    files = (PACKAGE / catalogue).glob("[!_]*.py")
    return sorted(file.stem for file in files if file.stem not in _NOT_ENTRIES)


def source(catalogue: Catalogue, name: str) -> Path:
    """Return the file of an entry.

    Raises:
        ConfigError: if there is no such entry; the message lists the valid names.
    """
    if name not in names(catalogue):
        kind = catalogue.removesuffix("s")
        raise ConfigError(f"unknown {kind} {name!r}: {did_you_mean(name, names(catalogue))}")
    return PACKAGE / catalogue / f"{name}.py"


def load(catalogue: Catalogue, name: str) -> ModuleType:
    """Import and return the module of an entry (this imports torch)."""
    source(catalogue, name)
    return importlib.import_module(f"kdpipe.{catalogue}.{name}")


def check_params(catalogue: Catalogue, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Validate `given` against the entry's ``Params`` and return all parameters, defaults filled.

    Raises:
        ConfigError: for an unknown entry, an unknown key or a value of the wrong type.
    """
    model = _params_model(catalogue, name)
    try:
        return model.model_validate(dict(given)).model_dump(mode="json")
    except ValidationError as error:
        where = f"{catalogue.removesuffix('s')} {name!r}"
        raise ConfigError(f"{where}: {explain(error, model)}") from None


def attribute(catalogue: Catalogue, name: str, attribute: str, default: Any) -> Any:
    """Return a literal class attribute of the entry's ``Method`` class, or `default`."""
    for node in _tree(catalogue, name).body:
        if isinstance(node, ast.ClassDef) and node.name == "Method":
            return _literal(node.body, attribute, default)
    return default


def constant(catalogue: Catalogue, name: str, constant: str, default: Any) -> Any:
    """Return a literal that the entry's file gives a name at its top level, or `default`."""
    return _literal(_tree(catalogue, name).body, constant, default)


def check_dims(network: str, spatial_dims: int) -> None:
    """Raise ConfigError unless a network can be built for 2 or 3 spatial dimensions."""
    dims = constant("nets", network, "DIMS", (2, 3))
    if spatial_dims not in dims:
        raise ConfigError(
            f"network {network!r} is for {' or '.join(map(str, dims))}D, the patch has "
            f"{spatial_dims} sides: take another network, or a preset whose patch has {dims[0]} "
            "sides (two sides: slices)"
        )


def trained_files(network: str, params: Mapping[str, Any]) -> list[Path]:
    """Return the files that a network with trained weights of its own consists of, else none.

    They need not exist: a file, or a folder that is not there, stands for itself.
    """
    if not constant("nets", network, "TRAINED", False):
        return []
    path = Path(check_params("nets", network, params)["path"]).expanduser()
    patterns = constant("nets", network, "FILES", ())
    found = sorted(file for pattern in patterns for file in path.glob(pattern) if file.is_file())
    return found or [path]


def needs_teacher(method: str) -> bool:
    """Say whether a method learns from a teacher; it does unless its class says otherwise."""
    return bool(attribute("methods", method, "needs_teacher", True))


def docstring(catalogue: Catalogue, name: str) -> str:
    """Return the docstring of the entry's file, or nothing."""
    return ast.get_docstring(_tree(catalogue, name)) or ""


def summary(catalogue: Catalogue, name: str) -> str:
    """Return the first line of the entry's docstring."""
    return docstring(catalogue, name).partition("\n")[0]


def describe_params(catalogue: Catalogue, name: str) -> dict[str, dict[str, Any]]:
    """Return parameter -> ``type`` with its bounds, ``required``, ``default``, ``description``."""
    schema = _params_model(catalogue, name).model_json_schema()
    return {
        key: {
            "type": _type_of(field),
            "required": key in schema.get("required", ()),
            "default": field.get("default"),
            "description": field.get("description", ""),
        }
        for key, field in schema.get("properties", {}).items()
    }


_BOUNDS = {
    "minimum": ">= {}",
    "exclusiveMinimum": "> {}",
    "maximum": "<= {}",
    "exclusiveMaximum": "< {}",
    "minItems": "at least {} items",
}


def _type_of(field: Mapping[str, Any]) -> str:
    """A parameter's type in words, from its JSON schema."""
    if "enum" in field:
        return " or ".join(map(str, field["enum"]))
    if "anyOf" in field:
        return " or ".join(map(_type_of, field["anyOf"]))
    kind = str(field.get("const", field.get("type", "any")))
    if kind == "array" and "items" in field:
        kind = f"list of {_type_of(field['items'])}"
    bounds = [text.format(field[key]) for key, text in _BOUNDS.items() if key in field]
    return ", ".join([kind, *bounds])


def _literal(lines: Sequence[ast.stmt], wanted: str, default: Any) -> Any:
    """Return the literal that is assigned to the name `wanted` in `lines`, or `default`."""
    for line in lines:
        if isinstance(line, ast.Assign | ast.AnnAssign) and line.value is not None:
            targets = line.targets if isinstance(line, ast.Assign) else [line.target]
            if any(isinstance(target, ast.Name) and target.id == wanted for target in targets):
                return ast.literal_eval(line.value)
    return default


@functools.cache
def _tree(catalogue: Catalogue, name: str) -> ast.Module:
    file = source(catalogue, name)
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


@functools.cache
def _params_model(catalogue: Catalogue, name: str) -> type[Parameters]:
    for node in _tree(catalogue, name).body:
        if isinstance(node, ast.ClassDef) and node.name == "Params":
            scope: dict[str, Any] = {
                "__name__": f"kdpipe.{catalogue}.{name}",
                "Parameters": Parameters,
                "Field": Field,
                "Literal": Literal,
            }
            code = compile(ast.Module([node], []), str(source(catalogue, name)), "exec")
            exec(code, scope)
            model: type[Parameters] = scope["Params"]
            model.model_rebuild(_types_namespace=scope)
            return model
    return Parameters
