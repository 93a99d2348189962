"""A form that prepares scans by itself is run on a raw one before it is handed out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import SimpleITK as sitk
from toy import Toy

from kdpipe.data.manifest import read_manifest
from kdpipe.errors import ConfigError, DataError
from kdpipe.infer.description import Description
from kdpipe.infer.model import load_model
from kdpipe.ship.raw import check_raw

Run = Callable[[Path, Mapping[str, Sequence[Path]], Mapping[str, sitk.Image]], float]


@pytest.fixture(autouse=True)
def _in_the_study(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toy.folder)  # the manifest's paths start there


def facts_of(toy: Toy, run: Run | None, cases: int = 2) -> dict[str, Any]:
    trained = load_model(toy.model)
    description = Description.of_run(trained.run, trained.preparation)
    form: Any = SimpleNamespace(check_raw=run) if run else SimpleNamespace()
    manifest = read_manifest(toy.manifest)[:cases]
    return check_raw(form, Path("bundle"), trained.network, description, manifest)


def test_it_is_given_raw_files_and_the_labels_on_their_grid(toy: Toy) -> None:
    seen: dict[str, tuple[Any, Any]] = {}

    def run(_: Path, files: Any, expected: Any) -> float:
        seen.update({case: (files[case], expected[case]) for case in expected})
        return 0.99995

    first = read_manifest(toy.manifest)[0]
    assert facts_of(toy, run) == {"raw": {"cases": [first.case], "same_labels": 0.99995}}
    files, labels = seen[first.case]
    assert tuple(files) == first.images
    assert labels.GetSize() == sitk.ReadImage(str(first.images[0])).GetSize()
    assert sitk.GetArrayViewFromImage(labels).any()


def test_other_labels_stop_the_export(toy: Toy) -> None:
    with pytest.raises(DataError, match=r"gives 0\.999800 of kdpipe's labels"):
        facts_of(toy, lambda *_: 0.9998)


def test_what_could_not_be_run_is_said(toy: Toy) -> None:
    def run(*_: Any) -> float:
        raise ConfigError("pip install 'kdpipe[bundle]'")

    assert facts_of(toy, run) == {"raw": {"skipped": "pip install 'kdpipe[bundle]'"}}
    assert "no raw files" in facts_of(toy, run, cases=0)["raw"]["skipped"]


def test_forms_that_take_windows_alone_say_nothing(toy: Toy) -> None:
    assert facts_of(toy, None) == {}
