"""What all tests share: real data and golden values lie beside the checkout, where they exist."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch or numpy start their thread pools: small tensors are slower on many threads, and
# tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder with values of official loss modules; tests that need it skip where it is missing."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip("needs ../shared/golden, which is not here")
    return folder


@pytest.fixture(scope="session")
def hippocampus() -> Path:
    """Folder with real MR volumes in MSD layout; skips where it is missing."""
    folder = SHARED / "data" / "msd_task04_hippocampus"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/msd_task04_hippocampus, which is not here")
    return folder
