"""What all checked models share: strictness, and errors that a person can act on."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from kdpipe.errors import did_you_mean


class Strict(BaseModel):
    """A frozen model in which an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Turn a pydantic error into one line a problem: the key, what is wrong, the nearest name."""
    return "; ".join(_problem(detail, model) for detail in error.errors())


def _problem(detail: Any, model: type[BaseModel]) -> str:
    location = [str(part) for part in detail["loc"]]
    key = ".".join(location) or "(top level)"
    if detail["type"] == "extra_forbidden":
        return f"unknown key {key!r}, {did_you_mean(location[-1], _fields_at(model, location))}"
    message = detail["msg"].removeprefix("Value error, ")
    given = "" if detail["type"] in {"missing", "value_error"} else f" (given: {detail['input']!r})"
    return f"{key}: {message}{given}"


def _fields_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """Return the legal keys of the (possibly nested) model that holds ``location[-1]``."""
    models = {model}
    for part in location[:-1]:
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        inner = {found for field in fields for found in _models_in(field.annotation)}
        models = inner or models  # an index or a tag of a union stays where it is
    return sorted({name for found in models for name in found.model_fields})


def _models_in(annotation: Any) -> set[type[BaseModel]]:
    """Return the models that stand in a type, however deep in tuples, dicts and unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {found for part in get_args(annotation) for found in _models_in(part)}
