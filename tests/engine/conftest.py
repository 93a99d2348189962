"""Fixtures of the engine's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from blobs import write_store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared store of tiny cases."""
    return write_store(tmp_path_factory.mktemp("prepared") / "cases")
