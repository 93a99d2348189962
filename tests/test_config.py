"""A wrong configuration dies early, with the key, the file and the nearest name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from nnunet_model import write_model

from kdpipe.config import Entry, json_schema, load_study, read_study
from kdpipe.errors import ConfigError
from kdpipe.plan import Plan
from kdpipe.runs import run_files

SMALL: dict[str, Any] = {
    "study": "small",
    "datasets": ["phantom_ct"],
    "teachers": ["segresnet"],
    "students": ["unet_tiny"],
    "methods": ["none", "kd"],
    "seeds": [0, 1],
}


def test_every_shipped_study_is_valid(root: Path) -> None:
    overlays = sorted((root / "workflow" / "studies").glob("*.yaml"))
    assert overlays
    assert read_study(root / "config.yaml").study == "phantom"
    for overlay in overlays:
        assert read_study(root / "config.yaml", overlay).study == overlay.stem


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sedes": [1]}, r"unknown key 'sedes', did you mean 'seeds'\?"),
        ({"methods": ["kdd"]}, r"unknown method 'kdd': did you mean 'kd'\? Valid: .*cwd, .*none"),
        ({"teachers": ["segresnt"]}, r"unknown net 'segresnt': did you mean 'segresnet'\?"),
        ({"students": ["nothing_like_it"]}, r"unknown net .* Valid: .*res_unet.*segresnet"),
        ({"datasets": ["phantom"]}, r"unknown data set 'phantom': did you mean 'phantom_ct'\?"),
        (
            {"methods": [{"cwd": {"tua": 1}}]},
            r"method 'cwd': unknown key 'tua', did you mean 'tau'",
        ),
        ({"methods": [{"cwd": {"tau": 0}}]}, r"method 'cwd': tau: .*greater than 0 \(given: 0\)"),
        ({"methods": ["cwd", {"cwd": {"tau": 2}}]}, r"cwd stands there more than once; .*'as:'"),
        ({"methods": [{"cwd": {}, "kd": {}}]}, r"an entry is a name or one name with parameters"),
        ({"methods": [{"cwd": {}, "as": "a/b"}]}, r"label 'a/b' must start with a letter"),
        ({"seeds": [1, 1]}, r"seeds: 1 stands there more than once"),
        ({"seeds": []}, r"seeds: .*at least 1 item"),
        (
            {"training": {"teacher": {"epoch": 3}}},
            r"'training.teacher.epoch', did you mean 'epochs'",
        ),
        ({"training": {"student": {"epochs": "many"}}}, r"training.student.epochs: .*integer"),
        (
            {"evaluation": {"protocols": ["strict"]}},
            r"evaluation.protocols: unknown protocol 'strict'; did you mean 'strict_mm'",
        ),
        ({"evaluation": {"protocols": ["word", "word"]}}, r"word, word: name each protocol once"),
        ({"evaluation": {"protocols": ["boundary_bands"]}}, r"scored beside .*see 'bands'"),
        ({"evaluation": {"protocols": []}}, r"evaluation.protocols: name at least one protocol"),
        ({"datasets": [{"phantom_ct": {"splits": ["kfold"]}}]}, r"no split 'kfold': .*'kfold3'"),
        (
            {"datasets": [{"phantom_ct": {"folds": [1]}}]},
            r"split 'default' has folds 0 to 0, not 1",
        ),
        ({"datasets": [{"phantom_ct": {"preset": "fine"}}]}, r"no preset 'fine': Valid: default"),
        (
            {"data_source": {"phantom": "x"}},
            r"unknown data set 'phantom', did you mean",
        ),
        ({"seeds": [-1]}, r"seeds.0: .*greater than or equal to 0"),
        ({"methods": [{"none": {}, "as": "base"}]}, r"'none' is the undistilled student"),
        ({"methods": [{"kd": {}, "as": "none"}]}, r"'none' is the undistilled student"),
        ({"methods": [{"cwd": {}, "as": ".."}]}, r"label '..' must start with a letter"),
        ({"datasets": [{"phantom_ct": {"fold": [0]}}]}, r"'datasets.0.fold', did you mean 'folds'"),
        ({"methods": [{"name": "kd", "parms": {}}]}, r"did you mean 'params'"),
        ({"methods": [{"sum": ["cwd"]}]}, r"method 'sum': parts: .*at least 2 items"),
        ({"methods": [{"sum": "cwd"}]}, r"a sum is a list of methods, such as .*, not 'cwd'"),
        ({"methods": [{"sum": ["cwd", "none"]}]}, r"sum: 'none' is no part of a sum"),
        ({"methods": [{"sum": ["cwd", {"sum": ["kd", "at"]}]}]}, r"'sum' is no part of a sum"),
        ({"methods": [{"sum": ["cwd", "cwd"]}]}, r"sum: cwd stands there twice; label one"),
        ({"methods": [{"sum": ["cwd", "kdd"]}]}, r"unknown method 'kdd': did you mean 'kd'"),
        ({"methods": [{"sum": ["cwd", {"kd": {"tua": 1}}]}]}, r"'kd': unknown key 'tua'"),
        ({"methods": [{"sum": ["cwd", "ps_kd"]}]}, r"'ps_kd' learns from the student's past self"),
        ({"cards": ["nowhere"]}, r"cards: nowhere is not a folder"),
        ({"ship": {"forms": ["onx"]}}, r"ship.forms.0: .*'onnx', 'int8'.* \(given: 'onx'\)"),
        ({"ship": {"forms": ["onnx", "onnx"]}}, r"ship.forms: onnx, onnx: name each form once"),
        ({"ship": {"forms": []}}, r"ship.forms: .*at least 1 item"),
        ({"ship": {"max_latency_ms": 0}}, r"ship.max_latency_ms: .*greater than 0"),
        ({"ship": {"max_latency": 5}}, r"'ship.max_latency', did you mean 'max_latency_ms'"),
    ],
)
def test_errors_name_the_key_and_the_nearest_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_study(SMALL | change, "my.yaml")
    assert str(caught.value).startswith("my.yaml: ")
    assert caught.value.exit_code == 2


def test_the_undistilled_student_is_always_there() -> None:
    study = load_study(SMALL | {"methods": ["cwd"]})
    assert [entry.name for entry in study.methods] == ["none", "cwd"]


def test_entries_with_parameters_and_labels() -> None:
    study = load_study(SMALL | {"methods": ["kd", {"kd": {"tau": 2}, "as": "kd_tau2"}]})
    assert study.methods[2] == Entry(name="kd", params={"tau": 2}, label="kd_tau2")
    assert Plan(study).cells.keys() >= {
        "results/phantom_ct/default/fold0/students/segresnet/unet_tiny/kd_tau2/seed1"
    }


def test_the_grid() -> None:
    two = {
        "teachers": ["segresnet", "res_unet"],
        "datasets": [{"phantom_ct": {"splits": ["kfold3"]}}],
    }
    plan = Plan(load_study(SMALL | two))
    cells = list(plan.cells.values())
    assert len(cells) == 3 * (
        2 + 2 + 2 * 2
    )  # folds x (teachers + none x seeds + kd x both x seeds)
    undistilled = [folder for folder, cell in plan.cells.items() if cell.keys["method"] == "none"]
    assert all("/students/no_teacher/unet_tiny/none/seed" in folder for folder in undistilled)
    student = next(cell for cell in cells if cell.keys["method"] == "kd")
    folder = plan.teacher_folder(student)
    assert folder is not None
    assert plan.cells[folder].network == student.teacher


def test_a_run_holds_only_what_its_stage_depends_on() -> None:
    runs = run_files(Plan(load_study(SMALL)))
    changes: dict[str, tuple[dict[str, Any], set[str]]] = {
        "overlap": ({"inference": {"overlap": 0.25}}, {"predict", "ship"}),
        "protocol": ({"evaluation": {"protocols": ["medpy"]}}, {"evaluate", "tables", "ship"}),
        "bands": ({"evaluation": {"bands": False}}, {"evaluate", "tables"}),
        "grid": (
            {"evaluation": {"protocols": ["strict_mm", "acf_bckd"]}},
            {"predict", "evaluate", "tables"},
        ),
        "teacher": ({"training": {"teacher": {"epochs": 7}}}, {"teachers", "tables"}),
        "student": ({"training": {"student": {"epochs": 7}}}, {"students", "tables"}),
        "source": ({"data_source": {"phantom_ct": "x"}}, {"raw"}),
        "profile": ({"profile": {"threads": 2}}, {"profiles"}),
        "limits": ({"ship": {"max_parameters": 5}}, {"ship"}),
        "resources": ({"resources": {"train": {"gpu": 1}}}, set()),
    }
    for change, stages in changes.values():
        changed = run_files(Plan(load_study(SMALL | change)))
        assert changed.keys() == runs.keys()
        different = {path for path in runs if runs[path] != changed[path]}
        assert bool(different) == bool(stages)
        assert all(any(f"/{stage}/" in path for stage in stages) for path in different)


def test_schema_file_is_in_step(root: Path) -> None:
    file = root / "workflow" / "schemas" / "config.schema.json"
    assert json.loads(file.read_text()) == json_schema(), "run: kdpipe schema > " + str(file)


def test_merging_is_snakemakes(tmp_path: Path) -> None:
    base, overlay = tmp_path / "base.yaml", tmp_path / "overlay.yaml"
    base.write_text(
        yaml.safe_dump(SMALL | {"training": {"teacher": {"epochs": 5, "batch_size": 1}}})
    )
    overlay.write_text("training: {teacher: {epochs: 9}}\nseeds: [3]\n")
    study = read_study(base, overlay)
    assert study.training.teacher.epochs == 9
    assert study.training.teacher.batch_size == 1
    assert study.seeds == (3,)


def test_unreadable_yaml_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("seeds: [1\n")
    with pytest.raises(ConfigError, match=r"broken.yaml: not readable as YAML"):
        read_study(file)


def test_floor_one_imports_no_heavy_package() -> None:
    modules = (
        "cli, config, resources, schema, plan, paths, provenance, discover, cards, errors, atomic, "
        "progress"
    )
    code = (
        f"from kdpipe import {modules}; from kdpipe.commands import listing, stages; import sys; "
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "monai", "pandas", "SimpleITK", "scipy"} & set(done.stdout.split())


def test_studies_are_frozen() -> None:
    study = load_study(SMALL)
    with pytest.raises(ValueError, match="frozen"):
        study.__setattr__("study", "other")


def test_a_source_that_is_not_there_stops_before_the_graph(tmp_path: Path) -> None:
    plan = Plan(load_study(SMALL | {"data_source": {"phantom_ct": str(tmp_path)}}))
    with pytest.raises(ConfigError, match=r"data_source.phantom_ct: .* holds no dataset.json"):
        plan.check_sources()
    (tmp_path / "dataset.json").write_text("{}")
    plan.check_sources()


def test_a_protocol_on_the_prepared_grid_brings_its_predictions_and_its_code() -> None:
    plain = Plan(load_study(SMALL))
    study = load_study(SMALL | {"evaluation": {"protocols": ["strict_mm", "acf_bckd"]}})
    plan = Plan(study)
    cell = next(iter(plan.cells.values()))
    reader = "kdpipe.infer.references"
    assert reader in plan.stage_modules("evaluate", cell)
    assert reader not in plain.stage_modules("evaluate", cell)
    name = study.datasets[0].name
    folders = [plan.paths.stage(name, stage) for stage in ("predict", "evaluate")]
    asked, scored = (run_files(plan)[f"{folder}/run.json"] for folder in folders)
    unasked, _ = (run_files(plain)[f"{folder}/run.json"] for folder in folders)
    assert asked.pop("prepared")
    assert asked == unasked, "the setting is there only where it is needed"
    protocols = [protocol["name"] for protocol in scored["protocols"]]
    assert protocols == ["strict_mm", "acf_bckd", "boundary_bands"]
    assert "definition" not in scored["protocols"][0], "a better explanation scores nothing again"
    assert scored["tolerances_mm"].keys() == scored["structures"].keys()
    of_study = run_files(plan)[f"{plan.paths.tables(study.study)}/run.json"]
    assert of_study["protocols"] == ["strict_mm", "acf_bckd"]
    assert of_study["definitions"]["acf_bckd"]["paper"]


def test_a_sum_of_methods_is_a_method() -> None:
    methods = [{"sum": ["cwd", {"kd": {"weight": 0.5}, "as": "half"}]}, {"sum": ["byot", "uskd"]}]
    study = load_study(SMALL | {"methods": methods})
    assert [entry.label for entry in study.methods] == ["none", "cwd+half", "byot+uskd"]
    plan = Plan(study)
    cells = {c.method.label: (folder, c) for folder, c in plan.cells.items() if c.method}
    folder, cell = cells["cwd+half"]
    assert folder.endswith("students/segresnet/unet_tiny/cwd+half/seed1")
    assert set(plan.stage_modules("train", cell)) >= {"kdpipe.methods.cwd", "kdpipe.methods.kd"}
    parts = run_files(plan)[f"{folder}/run.json"]["method"]["params"]["parts"]
    assert [(part["name"], part["label"]) for part in parts] == [("cwd", "cwd"), ("kd", "half")]
    assert parts[0]["params"]["tau"] == 4.0
    assert parts[1]["params"]["weight"] == 0.5
    assert "students/no_teacher/" in cells["byot+uskd"][0]


def test_a_sum_may_be_given_a_label() -> None:
    study = load_study(SMALL | {"methods": [{"sum": ["cwd", "kd"], "as": "both"}]})
    assert study.methods[1].label == "both"


def test_an_editor_accepts_every_form_of_an_entry() -> None:
    methods = ["kd", {"cwd": {"tau": 2}, "as": "cwd_tau2"}, {"sum": ["cwd", {"kd": {}}]}]
    jsonschema.validate(SMALL | {"methods": methods}, json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(SMALL | {"methods": [3]}, json_schema())


# --- teachers that are trained already ----------------------------------------------------------


def adopting(teacher: dict[str, Any], **change: Any) -> dict[str, Any]:
    return SMALL | {"teachers": [teacher]} | change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"students": [{"unet_tiny": {}, "weights": "a.pt"}]},
            r"unet_tiny: 'weights' is for teachers",
        ),
        ({"methods": [{"kd": {}, "weights": "a.pt"}]}, r"kd: 'weights' is for teachers"),
        (
            {"methods": [{"sum": ["kd", "at"], "weights": "a.pt"}]},
            r"kd\+at: 'weights' is for teachers",
        ),
        ({"methods": [{"sum": ["kd", {"at": {}, "weights": "a"}]}]}, r"sum: 'at' has no 'w"),
        ({"students": [{"torchscript": {"path": "a.pt"}}]}, r"'torchscript' is trained already"),
        ({"students": [{"nnunet": {"path": "x"}}]}, r"'nnunet' is trained already; it can be a t"),
        (
            {"teachers": [{"exported": {"path": "a.pt2"}, "weights": "b.pt"}]},
            r"exported: 'exported' brings its own weights; no 'weights'",
        ),
        ({"teachers": ["nnunet"]}, r"net 'nnunet': .*path"),
        (
            {"datasets": [{"phantom_ct": {"preset": {"nnunet": "nowhere"}}}]},
            r"nowhere/plans.json is not there: .* the folder of a trained nnU-Net v2 model",
        ),
        (
            {"datasets": [{"phantom_ct": {"preset": {"nnunt": "nowhere"}}}]},
            r"nnunt",
        ),
    ],
)
def test_what_a_trained_teacher_may_not_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_study(SMALL | change)


def slices_card(folder: Path) -> str:
    """A copy of phantom_ct whose preset makes slices; returns the folder."""
    from kdpipe.cards import BUILTIN_CARDS

    card = yaml.safe_load((BUILTIN_CARDS / "phantom_ct.yaml").read_text())
    card["presets"]["slices"] = card["presets"]["default"] | {"patch": [32, 32]}
    (folder / "phantom_ct.yaml").write_text(yaml.safe_dump(card))
    return str(folder)


def test_networks_must_be_for_the_sides_of_the_patch(tmp_path: Path) -> None:
    cards = [slices_card(tmp_path)]
    slices = {"cards": cards, "datasets": [{"phantom_ct": {"preset": "slices"}}]}
    for axis in ("teachers", "students"):
        load_study(SMALL | {axis: ["lcovnet"]})
        with pytest.raises(ConfigError, match=r"'lcovnet' is for 3D, the patch has 2 sides"):
            load_study(SMALL | slices | {axis: ["lcovnet"]})
    plan = Plan(load_study(SMALL | slices))
    runs = run_files(plan)
    assert all(runs[f"{folder}/run.json"]["patch"] == [32, 32] for folder in plan.cells)
    assert {plan.prepared(cell) for cell in plan.cells.values()} == {
        "data/prepared/phantom_ct/slices"
    }


def test_missing_files_of_a_teacher_stop_before_the_graph(tmp_path: Path) -> None:
    file = tmp_path / "best.pt"
    for teacher in ({"segresnet": {}, "weights": str(file)}, {"exported": {"path": str(file)}}):
        plan = Plan(load_study(adopting(teacher)))
        with pytest.raises(ConfigError, match=r"teachers\.\w+: .*best.pt is not there, or not a f"):
            plan.check_sources()
        file.mkdir()
        with pytest.raises(ConfigError, match=r"best.pt is not there, or not a file"):
            plan.check_sources()
        file.rmdir()
        file.touch()
        plan.check_sources()
        cell = next(cell for cell in plan.cells.values() if cell.role == "teacher")
        assert plan.weight_files(cell) == [str(file)]
        file.unlink()
    bundle = Plan(load_study(adopting({"monai_bundle": {"path": str(tmp_path)}})))
    with pytest.raises(ConfigError, match=r"not a folder with configs/\*.json, .*models/"):
        bundle.check_sources()


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from foreign_models import export, trained_net

    from kdpipe.nets.base import build_network

    monkeypatch.setenv("HOME", str(tmp_path))
    export(trained_net(), tmp_path / "net.pt2")
    plan = Plan(load_study(adopting({"exported": {"path": "~/net.pt2"}})))
    plan.check_sources()
    build_network("exported", {"path": "~/net.pt2"}, 1, 3)


def test_the_files_of_a_folder_are_those_that_decide_what_the_network_is(tmp_path: Path) -> None:
    from kdpipe.discover import trained_files

    wanted = ["configs/a.json", "configs/b.yaml", "models/best.pt", "models/old/model.pt"]
    for name in (*wanted, "configs/notes.txt", "docs/README.md", "models/log.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = trained_files("monai_bundle", {"path": str(tmp_path)})
    assert [str(file.relative_to(tmp_path)) for file in found] == wanted
    assert trained_files("monai_bundle", {"path": "nowhere"}) == [Path("nowhere")]
    assert trained_files("unet_tiny", {}) == []


def test_an_adopted_teacher_depends_on_no_recipe(tmp_path: Path) -> None:
    config = adopting({"segresnet": {}, "weights": "best.pt"})
    plan = Plan(load_study(config))
    runs = run_files(plan)
    tables = f"{plan.paths.tables('small')}/run.json"  # the report quotes the recipes of all
    (folder,) = (folder for folder, cell in plan.cells.items() if cell.role == "teacher")
    run = runs[f"{folder}/run.json"]
    assert "training" not in run and "method" not in run
    assert run["adopt"].keys() == {"validation_overlap", "precision"}
    assert run["network"]["weights"] == "best.pt"
    assert plan.stage_modules("train", plan.cells[folder])[0] == "kdpipe.engine.adopt"
    recipe = {"teacher": {"epochs": 7, "learning_rate": 0.5}}
    changed = run_files(Plan(load_study(config | {"training": recipe})))
    assert {path for path in runs if runs[path] != changed[path]} == {tables}
    recipe = {"teacher": {"validation_overlap": 0.5}}
    changed = run_files(Plan(load_study(config | {"training": recipe})))
    found = {path for path in runs if runs[path] != changed[path]}
    assert found == {f"{folder}/run.json", tables}
    students = [cell for cell in plan.cells.values() if cell.role == "student"]
    assert not any(cell.adopted for cell in students)


def test_a_profile_is_shared_by_methods_and_seeds_and_does_not_depend_on_weights() -> None:
    plan = Plan(load_study(SMALL | {"methods": ["none", "kd", "cwd"], "teachers": ["unet_tiny"]}))
    assert set(plan.profiles) == {
        "results/phantom_ct/profiles/teachers/unet_tiny",
        "results/phantom_ct/profiles/students/unet_tiny",
    }
    assert {plan.profile_folder(cell) for cell in plan.cells.values()} == set(plan.profiles)
    runs = run_files(plan)
    with_weights = {"teachers": [{"unet_tiny": {}, "weights": "best.pt"}]}
    adopted = Plan(load_study(SMALL | {"methods": ["none", "kd", "cwd"]} | with_weights))
    folder = "results/phantom_ct/profiles/teachers/unet_tiny"
    assert run_files(adopted)[f"{folder}/run.json"] == runs[f"{folder}/run.json"]
    assert adopted.network_files(adopted.profiles[folder]) == []


# --- nnU-Net ------------------------------------------------------------------------------------


def ct_model(folder: Path, **changes: Any) -> Path:
    """A model of nnU-Net that was trained for phantom_ct's labels; its checkpoint is empty."""
    names = {"background": 0, "liver": 1, "kidney": 2, "spleen": 3, "duct": 4, "tumour": 5}
    model = write_model(folder, **({"labels": names} | changes))
    (folder / "fold_0").mkdir(exist_ok=True)
    (folder / "fold_0" / "checkpoint_final.pth").touch()
    return model


def nnunet_study(model: Path, **params: Any) -> dict[str, Any]:
    preset = {"phantom_ct": {"preset": {"nnunet": str(model)}}}
    return adopting({"nnunet": {"path": str(model), **params}}, datasets=[preset])


def test_a_preset_of_a_trained_nnunet_has_its_own_folder(tmp_path: Path) -> None:
    model = ct_model(tmp_path / "model")
    study = load_study(nnunet_study(model))
    (use,) = study.datasets
    assert re.fullmatch(r"nnunet_[0-9a-f]{8}", use.preset_label)
    plan = Plan(study)
    plan.check_sources()
    assert plan.prepared_of("phantom_ct") == f"data/prepared/phantom_ct/{use.preset_label}"
    runs = run_files(plan)
    preparation = runs[f"data/prepared/phantom_ct/{use.preset_label}/run.json"]["preset"]
    assert preparation["intensity"]["kind"] == "standardize"
    assert preparation["spacing"] == [3.0, 1.2, 1.0]
    cells = [runs[f"{folder}/run.json"] for folder in plan.cells]
    assert all(run["patch"] == [4, 8, 16] for run in cells)
    other = load_study(nnunet_study(ct_model(tmp_path / "other")))
    assert other.datasets[0].preset_label != use.preset_label
    found = [Path(file).name for file in plan.weight_files(next(iter(plan.cells.values())))]
    assert found == ["dataset.json", "checkpoint_final.pth", "plans.json"]


def test_a_nnunet_on_images_of_another_preparation_is_refused(tmp_path: Path) -> None:
    model = ct_model(tmp_path / "model")
    plan = Plan(load_study(adopting({"nnunet": {"path": str(model)}})))
    with pytest.raises(ConfigError, match=r"expects its own preparation; write datasets: ") as told:
        plan.check_sources()
    written = yaml.safe_load(str(told.value).partition("; write ")[2])
    Plan(load_study(adopting({"nnunet": {"path": str(model)}}, **written))).check_sources()


ORDERS: dict[str, tuple[dict[str, Any], bool]] = {
    "the same": ({"background": 0, "liver": 1, "kidney": 2}, True),
    "written in another order": ({"kidney": 2, "liver": 1, "background": 0}, True),
    "numbered otherwise": ({"background": 0, "kidney": 1, "liver": 2}, False),
    "with a label to ignore": ({"background": 0, "liver": 1, "kidney": 2, "ignore": 3}, True),
    "other names": ({"background": 0, "organ": 1, "liver": 2}, True),
    "regions": ({"background": 0, "liver": [1, 2], "kidney": [2]}, True),
    "regions in another order": ({"background": 0, "kidney": [2], "liver": [1, 2]}, False),
}


@pytest.mark.parametrize("what", ORDERS)
def test_labels_in_another_order_than_the_cards_are_refused(tmp_path: Path, what: str) -> None:
    from kdpipe.cards import BUILTIN_CARDS

    labels, fits = ORDERS[what]
    card = yaml.safe_load((BUILTIN_CARDS / "phantom_ct.yaml").read_text())
    card["labels"]["raw"] = {0: "nothing", 1: "liver", 2: "kidney"}
    if "regions" in what:
        card["labels"] |= {"regions": {"liver": [1, 2], "kidney": [2]}, "targets": "regions"}
    (tmp_path / "phantom_ct.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    model = ct_model(tmp_path / "model", labels=labels)
    plan = Plan(load_study(nnunet_study(model) | {"cards": [str(tmp_path)]}))
    if fits:
        plan.check_sources()
    else:
        message = r"order kidney, liver, those of phantom_ct in the order liver, kidney: number"
        with pytest.raises(ConfigError, match=message):
            plan.check_sources()


def test_a_fold_that_is_not_there_stops_before_the_graph(tmp_path: Path) -> None:
    model = ct_model(tmp_path / "model")
    for params in ({"folds": [0, 3]}, {"checkpoint": "checkpoint_best.pth"}):
        plan = Plan(load_study(nnunet_study(model, **params)))
        with pytest.raises(ConfigError, match=r"fold_[03]/.* is not there; mend 'folds' or"):
            plan.check_sources()
