"""What all tests share: real data and golden values lie beside the checkout, where they exist."""

from __future__ import annotations

import os
from collections.abc import Iterator
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


def _real_data(name: str) -> Path:
    folder = SHARED / "data" / name
    if not folder.is_dir():
        pytest.skip(f"needs ../shared/data/{name}, which is not here")
    return folder


@pytest.fixture(scope="session")
def hippocampus() -> Path:
    """Folder with real MR volumes in MSD layout; skips where it is missing."""
    return _real_data("msd_task04_hippocampus")


@pytest.fixture(scope="session")
def chaos() -> Path:
    """Folder with real abdominal MR volumes of thick slices; skips where it is missing."""
    return _real_data("chaos20_abdomen_mr_t2spir")


@pytest.fixture(scope="session")
def kits_slices() -> Path:
    """Folder with real CT slices as PNG files; skips where it is missing."""
    return _real_data("kits19_2d_slices")


@pytest.fixture(scope="session")
def trained_nnunet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of a tiny model that nnU-Net has trained; skips where nnU-Net is not installed."""
    pytest.importorskip("nnunetv2")
    from nnunet_model import trained_model

    with trained_model(tmp_path_factory.mktemp("nnunet")) as folder:
        yield folder
