"""Digests follow what code does and what it imports, not how it is laid out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from loading import load_file

from kdpipe.provenance import canonical, digest, import_closure, quick_digest


@pytest.fixture
def copy(tmp_path: Path, root: Path) -> tuple[Path, Callable[[], ModuleType]]:
    """A copy of the package, and a function that loads its `provenance` afresh."""
    package = tmp_path / "kdpipe"
    shutil.copytree(root / "kdpipe", package, ignore=shutil.ignore_patterns("__pycache__"))

    return package, lambda: load_file(package / "provenance.py")


def test_canonical_form_ignores_the_order_of_keys() -> None:
    assert canonical({"b": 1, "a": [1, 2]}) == canonical({"a": [1, 2], "b": 1})
    assert digest([1, 2]) != digest([2, 1])


def test_closure_of_a_method_holds_its_shared_terms_and_nothing_of_other_methods() -> None:
    closure = import_closure(["kdpipe.methods.cwd"])
    shared = ("divergences", "pieces", "segmentation", "weights")
    terms = {f"kdpipe.terms.{name}" for name in shared}
    assert closure == {"kdpipe.methods.cwd", "kdpipe.methods.base", *terms}


def test_closure_of_training_reaches_lazy_imports_but_no_other_stage() -> None:
    closure = import_closure(["kdpipe.engine.train"])
    assert {"kdpipe.engine.loop", "kdpipe.data.crops.sampler", "kdpipe.data.store"} <= closure
    assert "kdpipe.infer.window" in closure  # it selects the checkpoint
    assert not any(".report." in name or ".methods.kd" in name for name in closure)
    assert "kdpipe.config" not in closure


def test_relative_imports_count(copy: tuple[Path, Callable[[], ModuleType]]) -> None:
    package, load = copy
    (package / "methods" / "mine.py").write_text("from .cwd import cwd_loss\nfrom . import base\n")
    of_cwd = import_closure(["kdpipe.methods.cwd"])
    assert load().import_closure(["kdpipe.methods.mine"]) == {"kdpipe.methods.mine", *of_cwd}


def test_an_unknown_module_is_an_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="kdpipe.methods.nope"):
        import_closure(["kdpipe.methods.nope"])


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("methods/cwd.py", "from __future__", "# a comment\nfrom __future__", False),
        ("methods/cwd.py", "Channel-wise distillation of the logits.", "Other words.", False),
        ("methods/cwd.py", "dim=2).mean()", "dim=2).sum()", True),
        ("terms/divergences.py", 'reduction="none"', 'reduction="sum"', True),
        ("methods/kd.py", "regions).mean()", "regions).sum()", False),
    ],
)
def test_digest_of_a_method(
    copy: tuple[Path, Callable[[], ModuleType]], file: str, old: str, new: str, changes: bool
) -> None:
    package, load = copy
    before = load().code_digest("kdpipe.methods.cwd")
    text = (package / file).read_text()
    assert old in text
    (package / file).write_text(text.replace(old, new))
    assert (load().code_digest("kdpipe.methods.cwd") != before) is changes


def test_the_end_of_a_file_of_weights_tells_of_a_change_at_its_start(tmp_path: Path) -> None:
    import torch

    digests = []
    for value in (0.0, 1.0):
        weights = torch.zeros(2**20)  # 4 MiB
        weights[0] = value
        torch.save({"first": weights}, tmp_path / "weights.pt")
        digests.append(quick_digest(tmp_path / "weights.pt"))
    assert digests[0] != digests[1]
    (tmp_path / "empty").touch()
    assert quick_digest(tmp_path / "empty") not in digests
