"""Fetching generates or indexes, keeps what is up to date, and leaves nothing half made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdpipe.cards import load_card
from kdpipe.data.acquisition import fetch as module
from kdpipe.data.acquisition.fetch import MARKER
from kdpipe.data.manifest import read_manifest
from kdpipe.data.phantoms import abdomen as phantom
from kdpipe.errors import ConfigError, DataError


def run_of(name: str, source: Path | None = None, **generator: Any) -> dict[str, Any]:
    """Settings as a run.json of the fetch stage holds them."""
    card = load_card(name)
    needed = {"id", "channels", "access", "generator", "files", "layout"}
    run = card.model_dump(mode="json", include=needed) | {
        "ids": {"n_labels": len(card.labels.raw)},
        "source": source and str(source),
        "accept_checksum": False,
    }
    if card.generator:
        run["structures"] = card.labels.structures
        small = {"n_cases": 3, "shape_min": [16, 16, 16], "shape_max": [20, 20, 20]}
        run["generator"] |= small | generator
    return run


def fetch(run: dict[str, Any], raw: Path, manifest: Path) -> None:
    """Fetch into `raw`, with archives and labels beside it."""
    module.fetch(run, raw, raw.parent / "archives" / run["id"], raw.parent / "labels", manifest)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that phantoms were generated into."""
    made: list[Path] = []
    original = phantom.generate

    def generate(folder: Path, *arguments: Any) -> None:
        made.append(folder)
        original(folder, *arguments)

    monkeypatch.setattr(phantom, "generate", generate)
    return made


def test_generate_then_keep(tmp_path: Path, calls: list[Path]) -> None:
    raw, manifest = tmp_path / "deep/raw", tmp_path / "manifest.tsv"
    fetch(run_of("phantom_ct"), raw, manifest)
    cases = read_manifest(manifest)
    assert [case.case for case in cases] == ["phantom_000", "phantom_001", "phantom_002"]
    assert all(case.label.is_file() and case.label.is_relative_to(raw) for case in cases)
    assert [path.name for path in raw.parent.iterdir()] == ["raw"]

    before = manifest.read_bytes()
    manifest.unlink()
    fetch(run_of("phantom_ct"), raw, manifest)
    assert manifest.read_bytes() == before
    assert len(calls) == 1


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    fetch(run_of("phantom_ct"), tmp_path / "raw", tmp_path / "manifest.tsv")
    assert (tmp_path / "raw/dataset.json").is_file()


@pytest.mark.parametrize("change", ["generator", "structures", "code"])
def test_a_change_generates_anew(
    tmp_path: Path, calls: list[Path], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    raw, manifest, run = tmp_path / "raw", tmp_path / "manifest.tsv", run_of("phantom_ct")
    fetch(run, raw, manifest)
    (raw / "left over").write_text("")
    if change == "generator":
        run = run_of("phantom_ct", n_cases=4)
    elif change == "structures":
        run["structures"] = {"liver": 1}
    else:
        monkeypatch.setattr(module, "code_digest", lambda name: f"new {name}")
    fetch(run, raw, manifest)
    assert len(calls) == 2
    assert len(read_manifest(manifest)) == (4 if change == "generator" else 3)
    assert not (raw / "left over").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.tsv", "raw"]


def test_a_failure_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, manifest = tmp_path / "raw", tmp_path / "manifest.tsv"

    def fail(folder: Path, *_: Any) -> None:
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    original = phantom.generate
    monkeypatch.setattr(phantom, "generate", fail)
    with pytest.raises(KeyboardInterrupt):
        fetch(run_of("phantom_ct"), raw, manifest)
    assert not list(tmp_path.iterdir())

    monkeypatch.setattr(phantom, "generate", original)
    fetch(run_of("phantom_ct"), raw, manifest)
    marker = (raw / MARKER).read_text()
    monkeypatch.setattr(phantom, "generate", fail)
    with pytest.raises(KeyboardInterrupt):
        fetch(run_of("phantom_ct", n_cases=4), raw, manifest)
    assert (raw / MARKER).read_text() == marker
    assert len(list((raw / "imagesTr").iterdir())) == 3


def test_files_of_others_are_never_removed(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="raw: holds files that were not generated"):
        fetch(run_of("phantom_ct"), tmp_path / "raw", tmp_path / "manifest.tsv")
    assert (tmp_path / "raw/thesis.txt").read_text() == "precious"


def test_a_generated_data_set_takes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data_source: 'phantom_ct' is generated"):
        fetch(run_of("phantom_ct", source=tmp_path), tmp_path / "raw", tmp_path / "m.tsv")


def test_a_local_folder_is_indexed_in_place(tmp_path: Path) -> None:
    fetch(run_of("phantom_ct"), tmp_path / "source", tmp_path / "first.tsv")
    run = run_of("msd_task04_hippocampus", source=tmp_path / "source")
    run["layout"]["case_pattern"] = r"phantom_\d+"
    fetch(run, tmp_path / "raw", tmp_path / "second.tsv")
    assert read_manifest(tmp_path / "second.tsv") == read_manifest(tmp_path / "first.tsv")
    assert not (tmp_path / "raw").exists()


def test_a_missing_folder_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    run = run_of("msd_task04_hippocampus", source=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        fetch(run, tmp_path / "raw", tmp_path / "m.tsv")
