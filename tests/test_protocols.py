"""The schema of metric protocols, and what every shipped one says of itself."""

from __future__ import annotations

import math
from typing import Any

import pytest

from kdpipe import protocols
from kdpipe.errors import ConfigError
from kdpipe.metrics.bands import band_names
from kdpipe.protocols import Metric, direction, get_protocol, protocol_names

PROTOCOLS = {name: get_protocol(name) for name in protocol_names()}


def test_units_and_directions_of_all_metrics() -> None:
    found = {
        (protocol.name, metric.name): (protocol.unit(metric), direction(protocol.name, metric.name))
        for protocol in PROTOCOLS.values()
        for metric in protocol.metrics
    }
    voxels = {name for name, protocol in PROTOCOLS.items() if protocol.distance_unit == "voxel"}
    assert voxels == {"acf_bckd", "transunet", "nnformer"}
    for (protocol, metric), (unit, better) in found.items():
        if metric.startswith("hd") or metric == "assd":
            assert (unit, better) == ("voxel" if protocol in voxels else "mm", -1)
        elif metric.startswith("error") or metric in {"abs_volume_error", "voe"}:
            assert (unit, better) == ("fraction", -1)
        elif metric in {"volume_error", "rvd"}:
            assert (unit, better) == ("fraction", 0)
        elif metric == "reference_ml":
            assert (unit, better) == ("ml", 0)
        else:
            assert metric in {"dice", "iou", "nsd", "nsd_area", "surface_dice"}
            assert (unit, better) == ("fraction", 1)
    with pytest.raises(ConfigError, match="'strict_mm' has no metric 'hd'; .*hd95"):
        direction("strict_mm", "hd")


def test_protocols_are_frozen_and_say_what_they_are() -> None:
    with pytest.raises(ValueError, match="frozen"):
        PROTOCOLS["strict_mm"].__setattr__("version", 2)
    assert PROTOCOLS["strict_mm"].version == 2
    for name, protocol in PROTOCOLS.items():
        assert get_protocol(name) is protocol
        assert protocol.name == name
        assert len({m.name for m in protocol.metrics}) == len(protocol.metrics)
        assert protocol.source
        assert "grid" in protocol.definition
        if any("hausdorff" in m.quantity for m in protocol.metrics):
            assert "hd95" in protocol.definition.lower()
            assert protocol.distance_unit in protocol.definition
    papers = {name for name, protocol in PROTOCOLS.items() if protocol.paper}
    assert papers == {"acf_bckd", "transunet", "nnformer", "word", "brats", "kits", "hlfd"}
    assert [name for name, p in PROTOCOLS.items() if p.grid == "prepared"] == ["acf_bckd"]
    assert [name for name, p in PROTOCOLS.items() if p.internal] == [protocols.BANDS]


def test_an_explanation_changes_no_run() -> None:
    protocol = PROTOCOLS["strict_mm"]
    explained = protocol.model_copy(update={"definition": "better", "source": "other"})
    assert explained.scoring == protocol.scoring
    assert protocol.model_copy(update={"version": 3}).scoring != protocol.scoring


def test_the_bands_are_those_that_are_counted() -> None:
    bands = [metric.band for metric in PROTOCOLS[protocols.BANDS].metrics]
    assert bands == band_names()
    assert [m.name for m in PROTOCOLS[protocols.BANDS].metrics] == [f"error_{b}" for b in bands]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantity": "hausdorff", "percentile": 95}, "'hausdorff'; did you mean 'hausdorff_"),
        ({"quantity": "hausdorff_max"}, "hd: 'hausdorff_max' needs percentile"),
        ({"quantity": "hausdorff_max", "percentile": 0}, "greater than 0"),
        ({"quantity": "hausdorff_max", "percentile": 101}, "less than or equal to 100"),
        ({"quantity": "dice", "percentile": 95}, "'dice' takes no percentile"),
        ({"quantity": "nsd", "tolerance_mm": 0}, "greater than 0"),
        ({"quantity": "nsd", "tolerance_mm": "mine"}, "'card'"),
        ({"quantity": "dice", "empty": "nan"}, "'left_out'"),
        ({"quantity": "dice", "empty": math.nan}, "finite number"),
        ({"quantity": "dice", "empty": {"missing_in_both": 0}}, "Field required"),
    ],
)
def test_wrong_metrics_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Metric.model_validate({"name": "hd", "empty": 0, **settings})


def test_a_wrong_file_is_named(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "FOLDER", tmp_path)
    (tmp_path / "mine.yaml").write_text("version: 1\nmetric: {}\n")
    with pytest.raises(ConfigError, match=r"mine.yaml: .*unknown key 'metric', did you mean"):
        get_protocol("mine")
    (tmp_path / "torn.yaml").write_text("version: [1\n")
    with pytest.raises(ConfigError, match="torn.yaml: not readable as YAML"):
        get_protocol("torn")
