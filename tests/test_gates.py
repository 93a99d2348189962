"""What a person has to do for a data set is said at once, before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdpipe.cards import card_files, load_card
from kdpipe.config import load_study
from kdpipe.errors import DataError
from kdpipe.gates import closed_gate, unaccepted
from kdpipe.plan import Plan
from kdpipe.runs import run_files

STUDY: dict[str, Any] = {"teachers": ["segresnet"], "students": ["unet_tiny"], "methods": ["none"]}


def plan(tmp_path: Path, *datasets: str, **more: Any) -> Plan:
    study = STUDY | {"data_root": str(tmp_path), "datasets": list(datasets)} | more
    return Plan(load_study(study))


def test_all_closed_gates_are_named_in_one_message(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        plan(tmp_path, "btcv", "word", "flare22").check_sources()
    text = str(caught.value)
    btcv, word = load_card("btcv"), load_card("word")
    for part in (
        *btcv.access.steps,
        f"put RawData.zip here: {tmp_path}/archives/btcv/RawData.zip",
        "md5 e8e3fc9604eadc34c47067e2332f8ea1 (third party)",
        "accept_licence: [btcv]",
        *word.access.steps,
        *btcv.source.citation,
        "KDPIPE_MIRROR",
        "Open data with like labels: flare22",
    ):
        assert part in text, part
    assert "data set 'flare22'" not in text  # it is open


def test_a_file_that_was_put_in_place_opens_the_gate(tmp_path: Path) -> None:
    accepted = {"accept_licence": ["btcv", "synapse_multiorgan"]}
    file = tmp_path / "archives" / "btcv" / "RawData.zip"
    file.parent.mkdir(parents=True)
    with pytest.raises(DataError, match="by hand"):
        plan(tmp_path, "btcv", **accepted).check_sources()
    file.write_bytes(b"x")
    plan(tmp_path, "btcv", "synapse_multiorgan", **accepted).check_sources()
    with pytest.raises(DataError, match="terms that you have to accept"):
        plan(tmp_path, "btcv").check_sources()


def test_a_derived_set_uses_the_files_of_its_origin(tmp_path: Path) -> None:
    derived = plan(tmp_path, "synapse_multiorgan")
    assert derived.intake.archives("synapse_multiorgan") == f"{tmp_path}/archives/btcv"
    run = run_files(derived)[f"{tmp_path}/raw/synapse_multiorgan/run.json"]
    assert [file["name"] for file in run["files"]] == ["RawData.zip"]
    assert run["ids"]["remap"] == {"8": 1, "4": 2, "3": 3, "2": 4, "6": 5, "11": 6, "1": 7, "7": 8}


def test_a_mirror_opens_the_gate_but_not_the_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDPIPE_MIRROR", str(tmp_path))
    plan(tmp_path, "btcv", accept_licence=["btcv"]).check_sources()
    with pytest.raises(DataError, match="accept_licence"):
        plan(tmp_path, "btcv").check_sources()


def test_a_folder_of_the_user_opens_the_gate(tmp_path: Path) -> None:
    (tmp_path / "word").mkdir()
    plan(tmp_path, "word", data_source={"word": str(tmp_path / "word")}).check_sources()


@pytest.mark.parametrize("name", sorted(card_files()))
def test_each_card_can_say_what_it_needs(name: str, tmp_path: Path) -> None:
    """No card leaves a user without a step, an address or a file's name."""
    card = load_card(name)
    files = [file for entry in card.files for file in entry.expanded()]
    gate = closed_gate(card, files, tmp_path, mirror=False)
    if card.access.mode == "manual":
        assert gate is not None and all(step in gate for step in card.access.steps)
    if card.access.mode == "open":
        assert gate is None and files and all(file.urls for file in files)
    if card.access.mode in ("manual", "derived"):
        assert card.access.steps
    assert (unaccepted(card) is not None) == card.licence.gated
