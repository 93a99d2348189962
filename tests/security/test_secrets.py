"""Tokens come from the environment and go nowhere else: not into results, logs or messages.

What a download does with them is in ``tests/data/acquisition/test_download.py``.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from blobs import make_job, make_run, write_store
from report_study import build_study

from kdpipe import cli
from kdpipe.config import Study, load_study
from kdpipe.data.acquisition._secrets import SECRETS
from kdpipe.engine.train import train
from kdpipe.plan import Plan
from kdpipe.provenance import environment
from kdpipe.report.page.write import write_report
from kdpipe.runs import run_files
from kdpipe.sharing import VARIABLE

CANARY = "hf_canary_3f9a+/%"
STUDY = {
    "datasets": ["phantom_ct"],
    "teachers": ["res_unet"],
    "students": ["unet_tiny"],
    "methods": ["kd"],
}


@pytest.fixture(autouse=True)
def _canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SECRETS, "MY_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, CANARY)


def leaks(folder: Path) -> list[str]:
    """Files that hold a canary; what torch saves is stored as it is, so a search finds it."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    assert files
    return [str(file) for file in files if CANARY.encode() in file.read_bytes()]


def test_the_search_finds_a_leak(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"token": CANARY}))
    assert leaks(tmp_path)


def test_settings_and_provenance_hold_none() -> None:
    assert CANARY not in json.dumps(run_files(Plan(load_study(STUDY))))
    assert CANARY not in json.dumps(environment())


def test_a_training_writes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    job = make_job(write_store(tmp_path / "cases"), tmp_path / "cell", make_run())
    train(job)
    assert leaks(tmp_path) == []
    assert CANARY not in caplog.text


def test_the_report_holds_none(tmp_path: Path) -> None:
    study = build_study(tmp_path / "study")
    page = tmp_path / "report.html"
    write_report(study.run, study.tables, study.figures, study.overlays, page)
    assert leaks(tmp_path) == []


def test_doctor_prints_none(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor"]) == 0
    shown = capfd.readouterr()
    assert shown.out and CANARY not in shown.out + shown.err


@pytest.mark.parametrize("key", ["token", "password", "hf_token", "api_key"])
def test_a_token_has_no_place_in_a_configuration(key: str) -> None:
    def keys(schema: object) -> set[str]:
        if isinstance(schema, dict):
            named = (
                set(schema["properties"]) if isinstance(schema.get("properties"), dict) else set()
            )
            return named.union(*map(keys, schema.values()))
        return set().union(*map(keys, schema)) if isinstance(schema, list) else set()

    assert key not in keys(Study.model_json_schema())
    assert key not in cli.build_parser().format_help()
    with pytest.raises(Exception, match=key):
        load_study({**STUDY, key: "x"})


def test_no_command_takes_a_token() -> None:
    """Arguments can be seen by everybody on a machine."""
    parser = cli.build_parser()
    commands = parser._subparsers._group_actions[0]  # type: ignore[union-attr]
    flags = {
        flag
        for command in commands.choices.values()  # type: ignore[union-attr]
        for action in command._actions
        for flag in action.option_strings
    }
    assert "--run" in flags
    assert [flag for flag in flags if any(w in flag for w in ("token", "password", "key"))] == []
