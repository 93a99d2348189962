"""What the tests of shipping share."""

from __future__ import annotations

import pytest
from toy import Toy, build_toy


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A toy study up to its trained student; tests change nothing in it."""
    return build_toy(tmp_path_factory.mktemp("toy") / "study")
