"""A method of a study: one entry of the catalogue, or a sum of several.

In a configuration a sum is ``{sum: [cwd, {hbd: {weight: 0.5}}]}``. Resolved, as in ``run.json``, it
is the entry ``sum`` with the parameter ``parts``, each with its name, its label and all its
parameters. Everything that depends on *which* methods a cell uses asks here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdpipe import discover
from kdpipe.errors import ConfigError

SUM = "sum"
_FORM = "a sum is a list of methods, such as {sum: [cwd, {hbd: {weight: 0.5}}]}"


def check_method(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Validate a method's parameters, or each part's, and return all, defaults filled.

    Raises:
        ConfigError: unknown method, unknown key, wrong value, or parts that do not go together.
    """
    checked = discover.check_params("methods", name, given)
    if name != SUM:
        return checked
    resolved = [_resolve(part) for part in checked["parts"]]
    labels = [part["label"] for part in resolved]
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise ConfigError(f"sum: {', '.join(repeated)} stands there twice; label one with 'as:'")
    past = [
        p["name"] for p in resolved if discover.attribute("methods", p["name"], "past_self", False)
    ]
    taught = [p["name"] for p in resolved if discover.needs_teacher(p["name"])]
    if past and taught:
        raise ConfigError(
            f"sum: {past[0]!r} learns from the student's past self and {taught[0]!r} from a "
            "teacher; a cell has one of the two"
        )
    return {"parts": resolved}


def method_names(name: str, params: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the catalogue entries that a method uses: itself, and the parts of a sum."""
    return (name, *(part["name"] for part in params["parts"])) if name == SUM else (name,)


def needs_teacher(name: str, params: Mapping[str, Any]) -> bool:
    """Say whether a method, or a part of the sum, learns from a trained teacher."""
    return any(discover.needs_teacher(part) for part in _terms(name, params))


def is_reading(name: str, params: Mapping[str, Any]) -> bool:
    """Say whether a method, or a part of the sum, is a reading of a paper not read in full."""
    return any(
        discover.attribute("methods", part, "is_reading", False) for part in _terms(name, params)
    )


def entry_from_yaml(value: Any) -> dict[str, Any]:
    """Turn ``name``, ``{name: {parameters}}``, ``{name: ..., as: label}`` into name, params, label.

    A network may also have ``weights: file`` beside its name.

    Raises:
        ValueError: the value has another form.
    """
    if isinstance(value, str):
        return {"name": value, "params": {}, "label": value}
    if not isinstance(value, Mapping):
        raise ValueError(f"an entry is a name or one name with parameters, not {value!r}")
    if "name" in value:
        return {"label": value["name"], "params": {}, **value}
    rest = dict(value)
    label = rest.pop("as", None)
    trained = {"weights": rest.pop("weights")} if "weights" in rest else {}
    if len(rest) != 1:
        raise ValueError(
            "an entry is a name or one name with parameters, optionally with 'as' (and for a "
            f"teacher 'weights'): {value!r}"
        )
    ((name, params),) = rest.items()
    if name == SUM:
        parts = _parts(params)
        label = label or "+".join(str(part["label"]) for part in parts)
        return {"name": SUM, "params": {"parts": parts}, "label": label, **trained}
    return {"name": name, "params": params or {}, "label": label or name, **trained}


def _terms(name: str, params: Mapping[str, Any]) -> tuple[str, ...]:
    names = method_names(name, params)
    return names[1:] if name == SUM else names


def _parts(params: Any) -> list[dict[str, Any]]:
    if isinstance(params, Mapping) and set(params) == {"parts"}:
        params = params["parts"]
    if not isinstance(params, list | tuple):
        raise ValueError(f"{_FORM}, not {params!r}")
    return [entry_from_yaml(part) for part in params]


def _resolve(part: Mapping[str, Any]) -> dict[str, Any]:
    name = part["name"]
    if extra := sorted(part.keys() - {"name", "label", "params"}):
        raise ConfigError(f"sum: {name!r} has no {', '.join(map(repr, extra))}; {_FORM}")
    if name in {SUM, "none"}:
        raise ConfigError(f"sum: {name!r} is no part of a sum; {_FORM}")
    params = check_method(name, part["params"])
    return {"name": name, "label": part["label"], "params": params}
