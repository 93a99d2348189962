"""``kdpipe new method`` writes a method and a test that pass as they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdpipe.errors import ConfigError
from kdpipe.scaffold import new_method


@pytest.fixture
def checkout(tmp_path: Path, root: Path) -> Path:
    ignore = shutil.ignore_patterns("__pycache__")
    for part in ("kdpipe", "tests"):
        shutil.copytree(root / part, tmp_path / part, ignore=ignore)
    for file in ("pyproject.toml", "config.yaml"):
        shutil.copy(root / file, tmp_path)
    return tmp_path


def run(checkout: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_is_written_passes_lint_facts_and_all_properties(checkout: Path) -> None:
    done = run(checkout, "kdpipe", "new", "method", "foo")
    assert done.returncode == 0, done.stderr
    assert "kdpipe/methods/foo.py" in done.stdout
    files = ("kdpipe/methods/foo.py", "tests/methods/test_foo.py")
    for command in (("ruff", "check"), ("ruff", "format", "--check")):
        linted = run(checkout, *command, *files)
        assert linted.returncode == 0, linted.stdout
    tested = run(checkout, "pytest", "-q", "-k", "foo", "tests/methods", "tests/test_facts.py")
    assert tested.returncode == 0, tested.stdout
    assert "passed" in tested.stdout
    assert "foo" in run(checkout, "kdpipe", "list", "methods").stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Foo", "take lower-case letters"),
        ("2d", "begin with a letter"),
        ("lambda", "cannot name a method"),
        ("../evil", "cannot name a method"),
        ("kd", "kd.py exists already"),
        ("base", "base.py exists already"),
    ],
)
def test_a_name_that_does_not_do_is_refused(name: str, message: str, root: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        new_method(name, root)


def test_a_place_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="written into a checkout"):
        new_method("foo", tmp_path)
    assert not any(tmp_path.iterdir())
