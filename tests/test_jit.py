"""Where compiled loops are taken from, and when they are not."""

from __future__ import annotations

import json
from types import ModuleType

import pytest

from kdpipe.jit import compiled


def test_a_module_of_kdpipe_that_is_missing_is_no_missing_numba() -> None:
    def moved() -> ModuleType:
        from kdpipe.data import no_such_loops  # type: ignore[attr-defined]

        return no_such_loops

    with pytest.raises(ImportError, match="no_such_loops"):
        compiled(moved)


def test_without_the_package_or_when_switched_off_there_are_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent() -> ModuleType:
        import no_such_compiler

        return no_such_compiler

    assert compiled(absent) is None
    assert compiled(lambda: json) is json
    monkeypatch.setenv("KDPIPE_JIT", "0")
    assert compiled(lambda: json) is None
