"""What a file says of its network is read back, and refused where it cannot be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ship.models import small_model

from kdpipe.errors import DataError
from kdpipe.infer.description import Description


def test_it_is_read_back() -> None:
    _, description = small_model("unet_tiny")
    text = description.to_json()
    assert Description.from_json(text, "a file").to_json() == text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 2}, "of another format"),
        ({"overlap": 3}, "overlap 3"),
        ({"overlap": "0.5"}, "'<=' not supported"),
        ({"labels": {"0": "background", "1": "left"}}, r"labels \[0, 1\] of 3"),
        ({"labels": {"0": "background", "1": "left", "4": "right"}}, r"labels \[0, 1, 4\] of 3"),
        ({"preset": {"spacing": [0, 1, 1]}}, "validation error"),
        ({"colour": "red"}, "unexpected keyword"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], reason: str) -> None:
    _, description = small_model("unet_tiny")
    text = json.dumps(json.loads(description.to_json()) | changes)
    with pytest.raises(DataError, match=rf"a file: its description is not usable \(.*{reason}"):
        Description.from_json(text, "a file")
