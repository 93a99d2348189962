"""Files of strangers run no code, fill no memory, and lead out of no folder."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from blobs import make_job, make_run, write_store
from foreign_models import export, trained_net

from kdpipe import discover
from kdpipe.cards import load_card
from kdpipe.commands.evaluation import _structures
from kdpipe.config import load_study, read_study
from kdpipe.data.folders.layout import list_files
from kdpipe.data.manifest import Case, read_manifest, write_manifest
from kdpipe.data.splits.split import digest, read_split
from kdpipe.data.store import StoredCase
from kdpipe.engine.adopt import load_weights
from kdpipe.engine.state import Checkpoint
from kdpipe.engine.train import train
from kdpipe.errors import ConfigError, DataError, KdpipeError
from kdpipe.infer.model import load_model
from kdpipe.layouts import Layout
from kdpipe.nets.base import build_network
from kdpipe.yaml_files import MOST_VALUES, check_size, load_yaml

STUDY = {
    "datasets": ["phantom_ct"],
    "teachers": ["res_unet"],
    "students": ["unet_tiny"],
    "methods": ["kd"],
}


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (os.mkdir, (str(self.mark),))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "code has run"


def bombs(folder: Path, mark: Path) -> list[Path]:
    """The ways in which torch reads a pickle: a zip archive, and the format before that."""
    files = [folder / "zip.pt", folder / "legacy.pt", folder / "plain.pt", folder / "inside.pt"]
    weights = {"weight": torch.zeros(1)}
    torch.save(Bomb(mark), files[0])
    torch.save(Bomb(mark), files[1], _use_new_zipfile_serialization=False)
    files[2].write_bytes(pickle.dumps(Bomb(mark)))
    torch.save({"format": 2, "state_dict": weights, "extra": Bomb(mark)}, files[3])
    return files


def test_the_bombs_are_real(tmp_path: Path, mark: Path) -> None:
    for file in bombs(tmp_path, mark):
        with file.open("rb") as stream:
            load = pickle.load if file.name == "plain.pt" else torch.load
            load(stream, **({} if load is pickle.load else {"weights_only": False}))
        assert mark.is_dir()
        mark.rmdir()


def test_a_model_runs_no_code(tmp_path: Path, mark: Path) -> None:
    for file in bombs(tmp_path, mark):
        with pytest.raises(DataError, match="not a usable kdpipe model"):
            load_model(file)
    assert not mark.exists()


def test_a_teacher_runs_no_code_in_a_training(tmp_path: Path, mark: Path) -> None:
    store = write_store(tmp_path / "cases")
    for file in bombs(tmp_path, mark):
        with pytest.raises(DataError, match="not a usable kdpipe model"):
            train(make_job(store, tmp_path / "cell", make_run("kd"), file))
    assert not mark.exists()
    assert not (tmp_path / "cell" / "model.pt").exists()


def test_adopted_weights_run_no_code(tmp_path: Path, mark: Path) -> None:
    for file in bombs(tmp_path, mark):
        with pytest.raises(DataError, match="not readable as weights"):
            load_weights(torch.nn.Linear(1, 1), file)
    assert not mark.exists()


def test_a_checkpoint_runs_no_code_and_the_training_starts_afresh(
    tmp_path: Path, mark: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file in bombs(tmp_path, mark):
        state = Checkpoint(tmp_path / file.stem, "digest")
        state.folder.mkdir()
        file.replace(state.file)
        assert state.load() is None
    assert not mark.exists()
    assert "damaged" in caplog.text


def test_a_shared_training_runs_no_code(
    tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdpipe import sharing
    from kdpipe.engine.shared import train_once

    monkeypatch.setenv(sharing.VARIABLE, str(tmp_path / "cache"))
    store = write_store(tmp_path / "cases")
    train_once(replace(make_job(store, tmp_path / "one", make_run()), code="code"))
    (entry,) = (tmp_path / "cache" / "trainings").glob("*/*")
    torch.save(Bomb(mark), entry / "model.pt")
    listed = json.loads((entry / "files.json").read_text())
    listed["model.pt"] = sharing.file_digest(entry / "model.pt")
    (entry / "files.json").write_text(json.dumps(listed))
    second = replace(make_job(store, tmp_path / "two", make_run()), code="code")
    train_once(second)
    assert not mark.exists()
    assert load_model(second.model).run == second.run


@pytest.mark.parametrize("member", ["weights", "example inputs", "opaque object"])
def test_an_exported_program_runs_no_code(tmp_path: Path, mark: Path, member: str) -> None:
    """PyTorch itself unpickles parts of such a file with all that a pickle can do."""
    torch.save(Bomb(mark), tmp_path / "bomb.pt")
    good = Path(export(trained_net(), tmp_path / "good.pt2"))
    bad = tmp_path / "bad.pt2"
    _poison(good, bad, member, (tmp_path / "bomb.pt").read_bytes(), pickle.dumps(Bomb(mark)))
    params = {"path": str(bad)}
    with pytest.raises(DataError, match="torch.export"):
        build_network("exported", params, in_channels=1, out_channels=3, spatial_dims=3)
    assert not mark.exists()
    with contextlib.suppress(Exception):  # what is left is no program; but by then it has run
        torch.export.load(bad)
    assert mark.is_dir()
    assert os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD") is None


def _poison(good: Path, bad: Path, member: str, saved: bytes, pickled: bytes) -> None:
    """Write the archive again with one payload replaced."""
    payload = {"weights": "/data/weights/weight_", "example inputs": "/data/sample_inputs/"}.get(
        member, "no such member"
    )
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if member == "weights" and name.endswith("weights_config.json"):
                config = json.loads(content)
                for entry in config["config"].values():
                    entry["use_pickle"] = True
                content = json.dumps(config).encode()
            elif payload in name:
                content = saved
            elif member == "opaque object" and name.endswith("constants_config.json"):
                root = name.partition("/")[0]
                entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}
                content = json.dumps({"config": {"x": entry | {"tensor_meta": None}}}).encode()
                target.writestr(f"{root}/data/constants/opaque_obj_0", pickled)
            target.writestr(name, content)


def test_a_prepared_case_with_a_pickled_array_is_refused(tmp_path: Path, mark: Path) -> None:
    import numpy as np

    store = write_store(tmp_path / "cases")
    file = store / "case_0" / "foreground.npz"
    np.savez(file, **{"1": np.array([Bomb(mark)], dtype=object)}, allow_pickle=True)
    with pytest.raises(DataError, match="missing or damaged"):
        StoredCase(store / "case_0").foreground(1)
    assert not mark.exists()


# YAML

LAUGHS = "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"{name}: &{name} [{', '.join(f'*{before}' for _ in range(10))}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
MAPS = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{p: *{before}, q: *{before}}}\n"
    for before, name in zip(
        ["a", *(f"m{i}" for i in range(40))], [f"m{i}" for i in range(41)], strict=True
    )
)
HOSTILE = {
    "laughs": LAUGHS,
    "maps": MAPS,
    "itself": "study: &s [*s]\n",
    "deep": "study: " + "[" * 5000 + "]" * 5000,
    "object": "study: !!python/object/apply:os.system ['touch ran']\n",
    "large": "study: " + "x" * (5 * 2**20),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("place", ["study", "card", "labels"])
def test_a_hostile_yaml_file_is_an_error_at_once(kind: str, place: str, tmp_path: Path) -> None:
    file = tmp_path / "hostile.yaml"
    file.write_text(HOSTILE[kind])
    reads: dict[str, Callable[[], Any]] = {
        "study": lambda: read_study(file),
        "card": lambda: load_card("hostile", [tmp_path]),
        "labels": lambda: _structures(file),
    }
    started = time.process_time()
    with pytest.raises(ConfigError) as told:
        reads[place]()
    assert len(str(told.value)) < 2000
    assert time.process_time() - started < 60  # written out it would take years
    assert not (Path.cwd() / "ran").exists()


def test_a_bomb_that_snakemake_has_read_is_an_error_too() -> None:
    with pytest.raises(ConfigError, match="more than"):
        load_study({**STUDY, "cards": yaml.safe_load(LAUGHS)["j"]})


def test_honest_aliases_are_understood() -> None:
    assert load_yaml("a: &a [1, 2]\nb: *a\n") == {"a": [1, 2], "b": [1, 2]}
    check_size([0] * (MOST_VALUES - 1))
    with pytest.raises(yaml.YAMLError):
        check_size([0] * MOST_VALUES)


# names that are paths

PATHS = ["../../x", "/etc/x", "..", ".", "", "a/b", "a\\b", "a\nb", "a\0b"]


@pytest.mark.parametrize("name", PATHS)
def test_a_case_is_no_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="case id"):
        Case(name, "s", (tmp_path / "i.nii.gz",), tmp_path / "l.nii.gz")
    good = Case("case", "s", (tmp_path / "i.nii.gz",), tmp_path / "l.nii.gz")
    write_manifest(tmp_path / "manifest.tsv", [good])
    text = (tmp_path / "manifest.tsv").read_text()
    (tmp_path / "manifest.tsv").write_text(text.replace("\ncase\t", f"\n{name}\t"))
    with pytest.raises(DataError):
        read_manifest(tmp_path / "manifest.tsv")
    parts = {"train": ["a"], "val": ["b"], "test": [name]}
    (tmp_path / "split.json").write_text(json.dumps(parts | {"sha256": digest(parts)}))
    with pytest.raises(DataError, match="case id"):
        read_split(tmp_path / "split.json")


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "..", "a b", "$(id)", "a;b", "a\nb", "-x"])
def test_a_label_is_no_path_and_no_command(name: str) -> None:
    for axis, entry in (("teachers", "res_unet"), ("students", "unet_tiny"), ("methods", "kd")):
        with pytest.raises(ConfigError, match="label"):
            load_study({**STUDY, axis: [{entry: {}, "as": name}]})
    with pytest.raises(ConfigError, match="study"):
        load_study({**STUDY, "study": name})


@pytest.mark.parametrize("study", ["..", "."])
def test_a_study_is_not_the_folder_above(study: str) -> None:
    with pytest.raises(ConfigError, match="study"):
        load_study({**STUDY, "study": study})


@pytest.mark.parametrize("name", ["../../x", "/x", "a/b", "..", "A", ""])
def test_a_data_set_is_no_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        load_study({**STUDY, "datasets": [name]})
    text = (discover.PACKAGE / "data/cards/phantom_ct.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("id: phantom_ct", f"id: '{name}'"))
    with pytest.raises(ConfigError, match="id"):
        load_card("mine", [tmp_path])


@pytest.mark.parametrize(
    "label", ["../../{case}.nii.gz", "/etc/{case}.nii.gz", "{up}/{case}.nii.gz"]
)
def test_a_template_leads_out_of_no_folder(label: str, tmp_path: Path) -> None:
    (tmp_path / "data" / "a..").mkdir(parents=True)
    (tmp_path / "data" / "a.." / "case.nii.gz").write_text("")
    layout = Layout(kind="files", find=r"a(?P<up>\.\.)/(?P<case>[^/]+)\.nii\.gz", label=label)
    with pytest.raises(ConfigError, match="leads out of"):
        list_files(tmp_path / "data", layout, 1)


@pytest.mark.parametrize("root", ["..", "/etc", "a/../../b"])
def test_a_root_lies_below(root: str) -> None:
    with pytest.raises(ValueError, match="below"):
        Layout(roots=(root,))


def test_writing_replaces_a_symlink_and_not_what_it_points_to(tmp_path: Path) -> None:
    from kdpipe.atomic import write_text

    (tmp_path / "precious").write_text("mine")
    (tmp_path / "metrics.csv").symlink_to(tmp_path / "precious")
    write_text(tmp_path / "metrics.csv", "scores")
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (tmp_path / "metrics.csv").is_symlink()


def test_every_error_has_an_exit_code() -> None:
    assert {ConfigError.exit_code, DataError.exit_code} == {2, 3}
    assert issubclass(DataError, KdpipeError)
