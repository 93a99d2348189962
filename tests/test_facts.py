"""Methods and networks say what they are; pages and the machine-readable list carry the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdpipe import discover
from kdpipe.commands.pages import write_pages
from kdpipe.errors import ConfigError
from kdpipe.facts import MARKS, method_facts

METHODS = discover.names("methods")
READINGS = {"mskd", "cpkd", "acw_skd"}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_states_paper_idea_equation_taps_and_provenance(name: str) -> None:
    facts = method_facts(name)
    for key in ("paper", "idea", "equation", "taps", "deviations"):
        assert len(facts[key]) >= 4, key
    assert ".. math::" in facts["equation"]
    assert {item["mark"] for item in facts["provenance"]} <= set(MARKS)
    assert facts["provenance"]
    assert facts["reading"] == facts["summary"].startswith("Reading of ")
    for key, param in facts["params"].items():
        assert param["description"] or key.startswith("weight"), f"{key} has no description"


def test_the_three_readings_are_called_so() -> None:
    assert {name for name in METHODS if method_facts(name)["reading"]} >= READINGS


def listed(what: str) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "kdpipe", "list", what, "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {entry["name"]: entry for entry in json.loads(done.stdout)}


def check_parameters(page: str, params: dict[str, dict[str, Any]]) -> None:
    for key, param in params.items():
        assert f"| `{key}` |" in page
        assert ("required" if param["required"] else f"`{param['default']}`") in page


def test_pages_and_json_carry_the_same_facts_of_methods(tmp_path: Path) -> None:
    write_pages(tmp_path)
    entries = listed("methods")
    assert set(entries) == set(METHODS)
    index = (tmp_path / "methods" / "index.md").read_text()
    for name, facts in entries.items():
        page = (tmp_path / "methods" / f"{name}.md").read_text()
        assert f"]({name}.md)" in index
        assert "```math\n" in page
        assert ("This is a reading of the paper" in page) == facts["reading"]
        for item in facts["provenance"]:
            assert item["text"].split("``")[0] in page
        check_parameters(page, facts["params"])


def test_pages_and_json_carry_the_same_facts_of_networks(tmp_path: Path) -> None:
    write_pages(tmp_path)
    entries = listed("nets")
    assert set(entries) == set(discover.names("nets"))
    index = (tmp_path / "networks" / "index.md").read_text()
    for name, facts in entries.items():
        page = (tmp_path / "networks" / f"{name}.md").read_text()
        assert f"]({name}.md)" in index
        assert "``" not in page.replace("```", "")
        assert ("comes with trained weights" in page) == facts["trained"]
        check_parameters(page, facts["params"])
    assert entries["lcovnet"]["dims"] == [3]
    assert "```python\nsizes = {" in (tmp_path / "networks" / "exported.md").read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Taps: logits", "Tabs: logits", r"cwd.py: the docstring needs the sections Paper, Idea"),
        ("- code: weight", "- guess: weight", r"Provenance: each item is '- MARK: text'"),
    ],
)
def test_a_docstring_that_lacks_something_is_named(
    monkeypatch: pytest.MonkeyPatch, old: str, new: str, message: str
) -> None:
    text = discover.docstring("methods", "cwd")
    assert old in text
    monkeypatch.setattr(discover, "docstring", lambda *_: text.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        method_facts("cwd")
