"""One set of versions: what is declared, pinned, and given to conda."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
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


def _pip_part(file: Path) -> list[str]:
    environment = yaml.safe_load(file.read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    *plain, last = environment["dependencies"]
    assert plain == ["python =3.11", "pip"]
    assert list(last) == ["pip"]  # what pip installs must come last
    return last["pip"]


def test_the_environment_files_are_known(root: Path) -> None:
    assert {file.name for file in (root / "envs").iterdir()} >= {"Apptainer.def"}
    assert {file.name for file in (root / "envs").glob("*.yaml")} == {
        "kdpipe.yaml",
        "cluster.yaml",
    }


@pytest.mark.parametrize(
    ("file", "extra"),
    [("kdpipe.yaml", ("export",)), ("cluster.yaml", ("slurm", "export"))],
    ids=str,
)
def test_a_conda_environment_has_the_pinned_versions(
    root: Path, file: str, extra: tuple[str, ...]
) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    lines = _pip_part(root / "envs" / file)
    assert all("==" in line for line in lines)
    given = _pins(lines)
    wanted = _names(project["dependencies"])
    for group in extra:
        wanted |= _names(project["optional-dependencies"][group])
    brought_along = {"snakemake-executor-plugin-slurm-jobstep"} if "slurm" in extra else set()
    assert given.keys() == wanted | brought_along
    assert given.items() <= _pins((root / "constraints.txt").read_text().splitlines()).items()


def test_the_image_is_built_from_the_same_pins_and_python(root: Path) -> None:
    recipe = (root / "envs" / "Apptainer.def").read_text()
    assert re.search(r"^From: python:3\.11-slim$", recipe, re.M)
    (install,) = re.findall(r"^    (pip install .*)$", recipe, re.M)
    assert "--constraint /opt/kdpipe/constraints.txt" in install
    copied = re.findall(r"^    (\S+) /opt/kdpipe/(\S+)$", recipe, re.M)
    assert all(source == target and (root / source).exists() for source, target in copied)
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    needed = {"constraints.txt", "pyproject.toml", "kdpipe", project["readme"]}
    assert needed | set(project["license-files"]) == {source for source, _ in copied}


def test_the_rules_find_their_environment(root: Path) -> None:
    named = {
        (file.parent / found).resolve()
        for file in (root / "workflow" / "rules").glob("*.smk")
        for found in re.findall(r'^    conda:\n        "(.+)"$', file.read_text(), re.M)
    }
    assert named == {root / "envs" / "kdpipe.yaml"}
