"""``kdpipe new`` writes a method, or a network, and a test that pass as they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdpipe.commands.scaffold import new_entry
from kdpipe.errors import ConfigError


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


def lint(checkout: Path, *files: str) -> None:
    for command in (("ruff", "check"), ("ruff", "format", "--check")):
        linted = run(checkout, *command, *files)
        assert linted.returncode == 0, linted.stdout


def test_what_is_written_passes_lint_facts_and_all_properties(checkout: Path) -> None:
    done = run(checkout, "kdpipe", "new", "method", "foo")
    assert done.returncode == 0, done.stderr
    assert "kdpipe/methods/foo.py" in done.stdout
    lint(checkout, "kdpipe/methods/foo.py", "tests/methods/test_foo.py")
    tested = run(checkout, "pytest", "-q", "-k", "foo", "tests/methods", "tests/test_facts.py")
    assert tested.returncode == 0, tested.stdout
    assert "passed" in tested.stdout
    assert "foo" in run(checkout, "kdpipe", "list", "methods").stdout


def test_a_network_passes_lint_and_what_holds_for_all_networks(checkout: Path) -> None:
    done = run(checkout, "kdpipe", "new", "net", "foo")
    assert done.returncode == 0, done.stderr
    assert "kdpipe/nets/foo.py" in done.stdout
    lint(checkout, "kdpipe/nets/foo.py", "tests/nets/test_foo.py")
    chosen = "foo or every_network_has_a_sample"
    tested = run(checkout, "pytest", "-v", "-k", chosen, "tests/nets", "tests/engine/test_taps.py")
    assert tested.returncode == 0, tested.stdout
    for test in (
        "test_every_network_has_a_sample",
        "test_stages_have_the_documented_shape[foo]",
        "test_published_cost[foo]",
    ):
        assert f"{test} PASSED" in tested.stdout
    places = run(checkout, "kdpipe", "taps", "foo", "--patch", "32", "48")
    assert "bottleneck" in places.stdout, places.stderr


def test_a_network_without_a_sample_is_noticed(checkout: Path) -> None:
    assert run(checkout, "kdpipe", "new", "net", "foo").returncode == 0
    (checkout / "tests" / "nets" / "test_foo.py").unlink()
    tested = run(checkout, "pytest", "-q", "-k", "every_network_has_a_sample", "tests/nets")
    assert tested.returncode == 1
    assert "'foo'" in tested.stdout


@pytest.mark.parametrize(
    ("what", "name", "message"),
    [
        ("method", "Foo", "take lower-case letters"),
        ("method", "2d", "begin with a letter"),
        ("method", "lambda", "cannot name a method"),
        ("net", "../evil", "cannot name a net"),
        ("method", "kd", "kd.py exists already"),
        ("net", "base", "base.py exists already"),
        ("net", "unet", "unet.py exists already"),
        ("net", "networks", "test_networks.py exists already"),
    ],
)
def test_a_name_that_does_not_do_is_refused(what: str, name: str, message: str, root: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        new_entry(what, name, root)


@pytest.mark.parametrize("what", ["method", "net"])
def test_a_place_that_is_no_checkout_is_refused(what: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="written into a checkout"):
        new_entry(what, "foo", tmp_path)
    assert not any(tmp_path.iterdir())
