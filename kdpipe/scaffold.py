"""``kdpipe new method NAME``: a file and a test that run as they are, to be written over."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from kdpipe import discover
from kdpipe.atomic import write_text
from kdpipe.errors import ConfigError

_TEMPLATES = Path(__file__).parent / "templates"


def new_method(name: str, root: Path = discover.PACKAGE.parent) -> str:
    """Write ``kdpipe/methods/<name>.py`` and ``tests/methods/test_<name>.py`` below `root`.

    Returns:
        What was written and what comes next, for a terminal.

    Raises:
        ConfigError: the name is no lower-case Python name, is taken, or `root` is no checkout.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(
            f"{name!r} cannot name a method: take lower-case letters, digits and _, and begin with "
            "a letter, for example 'my_method'"
        )
    files = {
        root / "kdpipe" / "methods" / f"{name}.py": _TEMPLATES / "method.py.txt",
        root / "tests" / "methods" / f"test_{name}.py": _TEMPLATES / "test_method.py.txt",
    }
    for file in files:
        if not file.parent.is_dir():
            raise ConfigError(
                f"{file.parent} is not there: a new method is written into a checkout of kdpipe, "
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
        f"Next: write your loss, try `python -m pytest tests/methods -k {name}`, put {name} under "
        "methods in config.yaml, run snakemake. See docs/adding_a_method.md."
    )
