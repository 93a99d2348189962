"""Sub-commands for a network that leaves its study: segment scans, export it, ship it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdpipe.arguments import add_command, add_path
from kdpipe.commands.export import run_export
from kdpipe.commands.predict import run_predict
from kdpipe.commands.ship import run_choose_student, run_model_card


def add_predict(commands: Any) -> None:
    """``kdpipe predict``: the test cases of a study, or any scans."""
    predict = add_command(
        commands, "predict", run_predict, "segment scans, or a study's test cases"
    )
    predict.add_argument(
        "scans",
        nargs="*",
        type=Path,
        metavar="SCAN",
        help="image file (NIfTI, NRRD, MetaImage, DICOM), or a folder of them or of DICOM series; "
        "several channels: one 4D file, or <case>_0000, <case>_0001 and so on",
    )
    add_path(predict, "--model", "model.pt, or what 'kdpipe export' wrote: a file or its folder")
    add_path(predict, "--out", "folder of label maps to write, on the native grid")
    _add_output(predict.add_argument_group("what is written, for scans"))
    _add_speed(predict.add_argument_group("how the network is run, for scans"))
    graph = predict.add_argument_group("instead of scans, within a study")
    add_path(graph, "--run", "run.json of the prediction", required=False)
    add_path(graph, "--prepared", "folder written by prepare", required=False)
    add_path(graph, "--split", "split.json", required=False)


def _add_output(group: Any) -> None:
    group.add_argument(
        "--suffix",
        choices=(".nii.gz", ".nrrd", ".mha"),
        default=".nii.gz",
        help="format of the label maps (default .nii.gz)",
    )
    group.add_argument(
        "--largest-component",
        nargs="*",
        metavar="STRUCTURE",
        help="keep the largest component only, of 26-connected voxels; of all structures if none "
        "is named. Give scans before it",
    )
    add_path(
        group,
        "--report",
        "what became of each scan, a .json file (default OUT/report.json)",
        required=False,
    )
    group.add_argument(
        "--continue",
        dest="continues",
        action="store_true",
        help="keep the label maps that the report of an earlier run vouches for",
    )
    group.add_argument("--overwrite", action="store_true", help="replace label maps that exist")


def _add_speed(group: Any) -> None:
    group.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default auto)"
    )
    group.add_argument(
        "--backend",
        choices=("auto", "torch", "onnxruntime", "openvino"),
        default="auto",
        help="what runs the network (default auto: what the model is for)",
    )
    group.add_argument(
        "--overlap",
        type=float,
        metavar="SHARE",
        help="of neighbouring windows, in [0, 1) (default: as the model says)",
    )
    group.add_argument(
        "--window-batch", type=int, metavar="N", help="windows a forward pass; fewer save memory"
    )
    group.add_argument("--threads", type=int, metavar="N", help="of the CPU (default: all)")


def add_export(commands: Any) -> None:
    """``kdpipe export``: a trained network in the forms that other programs read."""
    export = add_command(
        commands,
        "export",
        run_export,
        "write a trained network as ONNX and in other forms, each checked against it",
    )
    add_path(export, "--model", "model.pt of a trained network")
    add_path(export, "--prepared", "folder written by prepare, that it was trained on")
    add_path(export, "--split", "split.json: cases to calibrate with, and to check with")
    add_path(export, "--out", "folder to write: model.pt, the forms, parity.json")
    export.add_argument(
        "--forms",
        nargs="+",
        metavar="FORM",
        help="onnx, int8, torchscript, program, bundle (default: all, or those of --run)",
    )
    add_path(export, "--run", "run.json: names of the labels, overlap, forms", required=False)
    add_path(
        export,
        "--manifest",
        "table of cases from fetch: the bundle is run on a raw validation case",
        required=False,
    )


def add_ship(commands: Any) -> None:
    """What the target ``ship`` runs: the choice of a student, and its cards."""
    choose = add_command(
        commands,
        "choose-student",
        run_choose_student,
        "choose the student that a study hands out, on validation data",
    )
    add_path(choose, "--run", "run.json of the choice: limits, and the cells to choose from")
    add_path(choose, "--out", "choice.json to write")

    card = add_command(
        commands,
        "model-card",
        run_model_card,
        "write what an exported student costs, and its model card",
    )
    add_path(card, "--run", "run.json of the card: data, protocol")
    add_path(card, "--choice", "choice.json")
    add_path(card, "--export", "folder written by export")
    add_path(card, "--split", "split.json")
    add_path(card, "--manifest", "table of cases from fetch")
    add_path(card, "--scores", "scores.csv of the study")
    add_path(card, "--comparisons", "comparisons.csv of the study", required=False)
    add_path(card, "--cost", "cost.json to write")
    add_path(card, "--out", "MODEL_CARD.md to write")
