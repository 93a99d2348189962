"""One set of versions: what is declared, pinned, and given to conda."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml


def _pins(lines: list[str]) -> dict[str, str]:
    pairs = (line.strip().split("==") for line in lines if "==" in line)
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=\[ ]", text)[0].lower().replace("_", "-") for text in requirements}


def test_every_declared_package_is_pinned(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = [text for group in project["optional-dependencies"].values() for text in group]
    pins = _pins((root / "constraints.txt").read_text().splitlines())
    assert _names([*project["dependencies"], *extras]) <= pins.keys()


def test_the_conda_environment_has_the_pinned_versions(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((root / "envs" / "kdpipe.yaml").read_text())
    (pip,) = (part["pip"] for part in environment["dependencies"] if isinstance(part, dict))
    given = _pins(pip)
    assert given.keys() == _names(project["dependencies"])
    assert given.items() <= _pins((root / "constraints.txt").read_text().splitlines()).items()
