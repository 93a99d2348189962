"""What is known of a source file is kept, and never taken for another content."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdpipe import source_facts
from kdpipe.source_facts import SourceFacts, keep_facts


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where facts are kept, nothing being known yet."""
    file = tmp_path / "__pycache__" / "facts.json"
    monkeypatch.setattr(source_facts, "_KEPT", file)
    monkeypatch.setattr(source_facts, "_new", {})
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    source_facts._kept.cache_clear()
    yield file
    source_facts._kept.cache_clear()


def facts_of(file: Path) -> SourceFacts:
    return source_facts.source_facts("kdpipe.mine", file)


def test_what_was_kept_is_not_parsed_again(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import kdpipe.data.store\nx = 1\n")
    before = facts_of(file)
    keep_facts()
    source_facts._kept.cache_clear()  # as a new process
    monkeypatch.setattr(ast, "parse", lambda *_, **__: pytest.fail("parsed again"))
    assert facts_of(file) == before
    assert before.imports == ("kdpipe.data.store",)


def test_another_content_is_parsed(kept: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("x = 1\n")
    before = facts_of(file)
    keep_facts()
    source_facts._kept.cache_clear()
    file.write_text("x = 2\n")
    assert facts_of(file).digest != before.digest
    file.write_text("x = 1  # a comment\n")
    assert facts_of(file).digest == before.digest


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\x00", b'{"kdpipe.mine": null}'])
def test_a_damaged_file_is_as_good_as_none(kept: Path, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "mine.py"
    file.write_text("x = 1\n")
    before = facts_of(file)
    kept.parent.mkdir()
    kept.write_bytes(content)
    source_facts._new.clear()
    source_facts._kept.cache_clear()
    assert facts_of(file) == before


def test_a_folder_that_cannot_be_written_stops_nobody(kept: Path, tmp_path: Path) -> None:
    kept.parent.write_text("no folder")
    (tmp_path / "mine.py").write_text("x = 1\n")
    facts_of(tmp_path / "mine.py")
    keep_facts()
    assert not kept.exists()
