"""``kdpipe new``: the file of a catalogue entry and its test, which run as they are."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from pathlib import Path

from kdpipe import discover
from kdpipe.atomic import write_text
from kdpipe.errors import ConfigError

_TEMPLATES = discover.PACKAGE / "templates"


@dataclass(frozen=True)
class _Kind:
    """What can be started: its catalogue, and what its author does next."""

    catalogue: discover.Catalogue
    first: str
    axis: str
    guide: str


KINDS = {
    "method": _Kind("methods", "write your loss", "methods", "docs/adding_a_method.md"),
    "net": _Kind("nets", "write your layers", "students or teachers", "docs/adding_a_network.md"),
}


def new_entry(what: str, name: str, root: Path = discover.PACKAGE.parent) -> str:
    """Write ``kdpipe/<catalogue>/<name>.py`` and ``tests/<catalogue>/test_<name>.py`` below `root`.

    Args:
        what: one of `KINDS`.
        name: of the new entry, as in ``config.yaml``.
        root: the checkout.

    Returns:
        What was written and what comes next, for a terminal.

    Raises:
        ConfigError: the name is no lower-case Python name, is taken, or `root` is no checkout.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(
            f"{name!r} cannot name a {what}: take lower-case letters, digits and _, and begin with "
            f"a letter, for example 'my_{what}'"
        )
    kind = KINDS[what]
    files = {
        root / "kdpipe" / kind.catalogue / f"{name}.py": _TEMPLATES / f"{what}.py.txt",
        root / "tests" / kind.catalogue / f"test_{name}.py": _TEMPLATES / f"test_{what}.py.txt",
    }
    for file in files:
        if not file.parent.is_dir():
            raise ConfigError(
                f"{file.parent} is not there: a new {what} is written into a checkout of kdpipe, "
                "installed with pip install --editable"
            )
        if file.exists():
            raise ConfigError(f"{file} exists already: take another name, or edit it")
    for file, template in files.items():
        text = template.read_text(encoding="utf-8")
        write_text(file, text.replace("@NAME@", name))
    written = "\n".join(f"  {file.relative_to(root)}" for file in files)
    return (
        f"Written, and working as they are:\n{written}\n"
        f"Next: {kind.first}, try `python -m pytest tests/{kind.catalogue} -k {name}`, put {name} "
        f"under {kind.axis} in config.yaml, run snakemake. See {kind.guide}."
    )
