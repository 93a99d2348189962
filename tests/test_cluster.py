"""What is particular to a cluster, and the profile that reads it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yte

from kdpipe.cluster import read_site
from kdpipe.errors import ConfigError

SITE = """
account: "0123"
extra: --nice=10
jobs: 7
partitions:
  night: {max_runtime: 12-00:00:00, max_gpu: 4}
"""


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in and a home, both without a site."""
    for name in ("KDPIPE_SITE", "KDPIPE_SLURM_ACCOUNT", "KDPIPE_SLURM_QOS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _profile(root: Path) -> dict[str, Any]:
    with (root / "workflow/profiles/slurm/config.yaml").open() as stream:
        found: dict[str, Any] = yte.process_yaml(stream, require_use_yte=True)
    return found


def test_without_a_site_the_defaults_of_slurm_hold(nowhere: Path, root: Path) -> None:
    assert read_site().file is None
    profile = _profile(root)
    assert profile["executor"] == "slurm"
    assert profile["jobs"] == 100
    assert profile["default-resources"] == {"runtime": 10, "mem_mb": 1000}
    assert not {"slurm-partition-config", "slurm-qos"} & profile.keys()


def test_the_profile_takes_all_from_the_site(nowhere: Path, root: Path) -> None:
    file = nowhere / "workflow/profiles/slurm/site.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(SITE + "accounting: false\nqos: long\n")
    profile = _profile(root)
    assert profile["jobs"] == 7
    assert profile["slurm-qos"] == "long"
    assert profile["slurm-partition-config"] == "workflow/profiles/slurm/site.yaml"
    assert "slurm-efficiency-report" not in profile
    # as text, which Snakemake would else evaluate: a number, a difference
    assert profile["default-resources"]["slurm_account"] == "'0123'"
    assert profile["default-resources"]["slurm_extra"] == "'--nice=10'"


def test_one_s_own_file_comes_before_that_of_the_checkout(nowhere: Path) -> None:
    for name, account in (
        ("home/.config/kdpipe/site.yaml", "mine"),
        ("workflow/profiles/slurm/site.yaml", "ours"),
        ("other.yaml", "named"),
    ):
        (nowhere / name).parent.mkdir(parents=True, exist_ok=True)
        (nowhere / name).write_text(f"account: {account}\n")
    assert read_site().account == "mine"
    assert read_site({"KDPIPE_SITE": "other.yaml"}).account == "named"
    chosen = {"KDPIPE_SITE": "other.yaml", "KDPIPE_SLURM_ACCOUNT": "said"}
    assert read_site(chosen).account == "said"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("acount: kd", "unknown key 'acount', did you mean 'account'"),
        ("jobs: 0", "jobs: "),
        ("account: [", "not readable as YAML"),
        ("- account", "expected"),
        ("file: x", "expected"),
    ],
)
def test_a_wrong_site_is_told_with_its_file(nowhere: Path, text: str, told: str) -> None:
    (nowhere / "site.yaml").write_text(text)
    with pytest.raises(ConfigError, match="site.yaml") as caught:
        read_site({"KDPIPE_SITE": "site.yaml"})
    assert told in str(caught.value)


def test_a_named_site_must_be_there(nowhere: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere.yaml, which is no file"):
        read_site({"KDPIPE_SITE": "nowhere.yaml"})


def test_the_site_of_the_checkout_is_an_example_that_changes_nothing(
    nowhere: Path, root: Path
) -> None:
    example = root / "workflow/profiles/slurm/site.yaml"
    assert read_site({"KDPIPE_SITE": str(example)}).model_dump(exclude={"file"}) == (
        read_site().model_dump(exclude={"file"})
    )
    uncommented = re.sub(r"(?m)^# (?=\w+:|  \w+: \{)", "", example.read_text())
    (nowhere / "site.yaml").write_text(uncommented)
    site = read_site({"KDPIPE_SITE": "site.yaml"})
    assert site.account and site.qos and site.extra and set(site.partitions) == {"cpu", "gpu"}


def test_only_jobs_without_a_gpu_are_grouped(nowhere: Path, root: Path) -> None:
    rules = "\n".join(file.read_text() for file in (root / "workflow/rules").glob("*.smk"))
    grouped = _profile(root)["groups"]
    assert grouped
    for name in grouped:
        (body,) = re.findall(rf"^rule {name}:\n((?:    .*\n|\n)+)", rules, re.M)
        assert "gpu=" not in body


def test_what_the_executor_gets_wrong_is_switched_off(nowhere: Path, root: Path) -> None:
    profile = _profile(root)
    assert profile["slurm-status-command"] == "squeue"
    assert profile["slurm-requeue"] is True
    assert "slurm-array-jobs" not in profile
    # it forgets its jobs when squeue has failed as often as this
    patience = profile["slurm-status-attempts"] / profile["max-status-checks-per-second"]
    assert patience >= 3600


@pytest.mark.parametrize(("mode", "threads"), [("default", ["3", "3"]), ("remote", [])])
def test_latency_is_measured_on_a_machine_alone_but_not_in_a_job_of_a_cluster(
    root: Path, tmp_path: Path, mode: str, threads: list[str]
) -> None:
    command = [sys.executable, "-m", "snakemake", "-n", "--cores", "3", "--mode", mode]
    command += ["--directory", str(tmp_path), "--configfile", str(root / "config.yaml")]
    command += ["--snakefile", str(root / "Snakefile"), "--workflow-profile", "none"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        [*command, "--until", "profile"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    jobs = re.findall(r"^rule profile:\n(?:    .+\n)+", done.stdout + done.stderr, re.M)
    assert len(jobs) == 2
    assert re.findall(r"^    threads: (\d+)", "".join(jobs), re.M) == threads
