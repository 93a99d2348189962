"""The command ``kdpipe``: one sub-command a stage, the only thing that rules call.

Each works without Snakemake. What they do is in `kdpipe.commands.stages`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdpipe import __version__
from kdpipe.arguments import add_command as _add
from kdpipe.arguments import add_path as _path
from kdpipe.cli_deploy import add_export, add_predict, add_ship
from kdpipe.commands import stages
from kdpipe.engine.signals import StopRequest
from kdpipe.errors import ConfigError, KdpipeError
from kdpipe.progress import start_log

_EPILOG = """\
exit codes:
  0   done
  2   the configuration or the command line is wrong
  3   the data are wrong; the message names the case
  4   training diverged; the message names a file with the batch
  5   another process does the same work; nothing was touched
  75  stopped by a signal, or a process that works for this one was killed; the same
      command goes on, a training from its last checkpoint
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command and return the exit code."""
    parser = build_parser()
    given = parser.parse_args(arguments)
    given.arguments = sys.argv[1:] if arguments is None else list(arguments)
    start_log()
    # what follows a signal is the same for all; a training has a request of its own within
    on_stop = getattr(given, "on_stop", "auto")
    try:
        with StopRequest(on_stop, before="the end"):
            given.command(given)
    except KdpipeError as error:
        print(f"kdpipe {given.name}: error: {error}", file=sys.stderr)
        return error.exit_code
    except ValidationError as error:  # of settings in a run.json that was written by hand
        print(f"kdpipe {given.name}: error: {error}", file=sys.stderr)
        return ConfigError.exit_code
    except BrokenPipeError:  # the reader, `head` for instance, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all sub-commands."""
    parser = argparse.ArgumentParser(
        prog="kdpipe",
        description="Distil medical segmentation networks and compare the methods.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kdpipe {__version__}")
    commands = parser.add_subparsers(title="sub-commands", metavar="COMMAND", required=True)

    fetch = _add(commands, "fetch", stages.run_fetch, "bring a data set's files here and list them")
    _path(fetch, "--run", "run.json of the data set's source")
    _path(fetch, "--files", "folder for unpacked or generated files")
    _path(fetch, "--archives", "folder for downloaded files, or where you put them")
    _path(fetch, "--labels", "folder for label maps, if they have to be made")
    _path(fetch, "--manifest", "table of cases to write")

    prepare = _add(commands, "prepare", stages.run_prepare, "check, resample and store the images")
    _path(prepare, "--run", "run.json of the preparation")
    _path(prepare, "--manifest", "table of cases from fetch")
    _path(prepare, "--store", "folder of prepared cases; cases that are there are kept")
    _path(prepare, "--cases", "table of prepared cases to write")
    _path(prepare, "--fingerprint", "summary of the data set to write (JSON)")
    _path(prepare, "--integrity", "findings to write (JSON, and TSV beside it)", required=False)
    _path(prepare, "--names", "run.json with the names of the label ids", required=False)
    _path(prepare, "--report", "report for people to write (HTML)", required=False)
    prepare.add_argument("--code", default="", help="digest of the code, kept with each case")
    prepare.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    prepare.add_argument("--memory-mb", type=int, help="bound for all processes together")
    _wait(prepare)

    split = _add(
        commands, "split", stages.run_split, "divide the patients into train, val and test"
    )
    _path(split, "--run", "run.json of the split")
    _path(split, "--cases", "table of prepared cases")
    _path(split, "--integrity", "findings of the preparation, for leaks", required=False)
    _path(split, "--out", "split.json to write")

    for name, text in (("train", "train a teacher"), ("distill", "train a student")):
        train = _add(commands, name, stages.run_train, text)
        _path(train, "--run", "run.json of the cell")
        _path(train, "--prepared", "folder written by prepare (run.json and cases/)")
        _path(train, "--split", "split.json")
        _path(train, "--state", "folder for checkpoints; kept when interrupted")
        _path(train, "--model", "model.pt to write; model.json and train.csv come beside it")
        train.add_argument("--code", default="", help="digest of the code, for the provenance")
        train.add_argument(
            "--processes", type=int, default=1, help="that train together, one a GPU (default 1)"
        )
        _add_course(train)
        _wait(train)
        if name == "distill":
            _path(train, "--teacher", "model.pt of the teacher", required=False)
            _path(train, "--choice", "choice.json with the settings of a tuned one", required=False)
            _paths(train, "--trained", "folders of trainings; taken over if it is the same")

    cohort = _add(
        commands, "train-cohort", stages.run_train_cohort, "train students of the same batches"
    )
    cohort.add_argument(
        "--run",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="run.json of a member, repeatable; checkpoints and results come beside it",
    )
    _path(cohort, "--members", "instead of --run, in a study: what its graph says", required=False)
    _path(cohort, "--prepared", "folder written by prepare (run.json and cases/)")
    _path(cohort, "--split", "split.json")
    _path(cohort, "--teacher", "model.pt of the teacher of those that need one", required=False)
    _add_course(cohort)

    choose = _add(commands, "choose", stages.run_choose, "choose the best trial of a method")
    _path(choose, "--run", "run.json with the settings of all trials")
    _paths(choose, "--facts", "model.json of each trial, in their order")
    _path(choose, "--out", "choice.json to write")

    cost = _add(commands, "profile", stages.run_profile, "measure what a network costs")
    _path(cost, "--run", "run.json of the network: what it is, its patch")
    _path(cost, "--out", "profile.json to write")

    taps = _add(commands, "taps", stages.run_taps, "list the features of a network by module path")
    taps.add_argument(
        "network", help="as in config.yaml: a name, or '{nnunet: {path: FOLDER}}' (YAML)"
    )
    taps.add_argument(
        "--patch", type=int, nargs="+", required=True, metavar="SIDE", help="2 or 3 sides, voxels"
    )
    taps.add_argument("--channels", type=int, default=1, help="of the image (default 1)")
    taps.add_argument("--classes", type=int, default=2, help="with background (default 2)")

    add_predict(commands)
    _add_evaluate(commands)

    tables = _add(commands, "tables", stages.run_tables, "turn scores into the tables of a study")
    _path(tables, "--run", "run.json of the tables")
    _path(tables, "--out", "folder for results.csv, scores.csv, results.md and results.tex")

    compare = _add(commands, "compare", stages.run_compare, "test which method is better")
    _path(compare, "--run", "run.json of the tables")
    _path(compare, "--tables", "folder written by tables; comparisons and claim.json are added")

    verify = _add(commands, "verify", stages.run_verify, "recompute the numbers of a claim.json")
    verify.add_argument("claim", type=Path, help="claim.json of a study")
    _path(verify, "--scores", "scores.csv, if it is not beside the claim", required=False)

    figures = _add(commands, "figures", stages.run_figures, "draw the figures of a study")
    _path(figures, "--run", "run.json of the tables")
    _path(figures, "--tables", "folder written by tables and compare")
    _path(figures, "--out", "folder of figures to write (SVG, PNG, and an index)")

    overlays = _add(
        commands, "overlays", stages.run_overlays, "draw contours on slices of worst to best cases"
    )
    _path(overlays, "--run", "run.json of the tables")
    _path(overlays, "--tables", "folder written by tables")
    _path(overlays, "--out", "folder of pictures to write (PNG, and an index)")

    report = _add(commands, "report", stages.run_report, "write the report of a study, one file")
    _path(report, "--run", "run.json of the tables")
    _path(report, "--tables", "folder written by tables and compare")
    _path(report, "--figures", "folder written by figures")
    _path(report, "--overlays", "folder written by overlays")
    _path(report, "--out", "report (HTML) to write")

    plan = _add(
        commands, "plan", stages.run_plan, "say what a study can show and cost, before it starts"
    )
    plan.add_argument("files", nargs="+", metavar="FILE", help="config.yaml, then overlays")
    plan.add_argument(
        "--tflops", type=float, default=10.0, help="sustained speed of a GPU (default 10)"
    )

    add_export(commands)
    add_ship(commands)

    listing = _add(commands, "list", stages.run_list, "show what can stand in a configuration")
    listing.add_argument("what", choices=("methods", "nets", "datasets", "studies", "protocols"))
    listing.add_argument("--json", action="store_true", help="machine-readable")
    listing.add_argument("--cards", action="append", default=[], help="folder with more cards")

    docs = _add(commands, "docs", stages.run_docs, "write a page for each method and network")
    _path(docs, "--out", "folder for methods/ and networks/, each with its index (Markdown)")

    new = _add(commands, "new", stages.run_new, "start an entry of a catalogue, or a card")
    new.add_argument("what", choices=("method", "net", "dataset"))
    new.add_argument(
        "entry", metavar="NAME", help="lower case, as in config.yaml; of a data set, its FOLDER"
    )
    card = new.add_argument_group("for a data set, whose card is written")
    card.add_argument("--name", dest="dataset", help="of the data set (default: the folder's)")
    card.add_argument(
        "--out", type=Path, default=Path("cards"), metavar="PATH", help="folder of cards (cards)"
    )

    _add(commands, "doctor", stages.run_doctor, "show versions, processors and accelerators")
    _add(commands, "schema", stages.run_schema, "print the JSON schema of config.yaml")
    return parser


def _add_course(train: argparse.ArgumentParser) -> None:
    """What changes no result of a training."""
    train.add_argument("--checkpoint-seconds", type=float, default=60.0, help="0: after every step")
    train.add_argument("--loaders", type=int, default=0, help="processes that load data")
    train.add_argument(
        "--on-stop",
        choices=("auto", "wait", "exit"),
        default="auto",
        help="after SIGTERM or SIGUSR1: save, then exit, or wait to be killed, which a "
        "cluster wants to see to queue the job again (default auto: wait in a SLURM job)",
    )


def _add_evaluate(commands: Any) -> None:
    evaluate = _add(
        commands, "evaluate", stages.run_evaluate, "score label maps against references"
    )
    _path(evaluate, "--prediction", "folder of predicted label maps")
    _path(evaluate, "--out", "tidy table to write (CSV)")
    _path(evaluate, "--reference", "folder of reference label maps", required=False)
    _path(evaluate, "--labels", "YAML file: structure name: label or [labels]", required=False)
    evaluate.add_argument(
        "--protocol",
        action="append",
        metavar="NAME",
        help="metric protocol, see 'kdpipe list protocols' (default strict_mm); repeatable",
    )
    evaluate.add_argument(
        "--tolerance",
        dest="tolerances",
        action="append",
        default=[],
        metavar="STRUCTURE=MM",
        help="tolerance of the surface Dice (default 1 mm); repeatable",
    )
    evaluate.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    graph = evaluate.add_argument_group("instead of --reference and --labels, within a study")
    _path(graph, "--run", "run.json of the evaluation", required=False)
    _path(graph, "--cell", "run.json of the cell; its keys become columns", required=False)
    _path(graph, "--manifest", "table of cases from fetch", required=False)
    _path(graph, "--split", "split.json; its test cases are scored", required=False)
    _path(graph, "--prepared", "folder written by prepare, for its grid", required=False)


def _wait(parser: Any) -> None:
    parser.add_argument(
        "--wait-minutes",
        type=float,
        default=0.0,
        metavar="N",
        help="how long to wait for another process that does the same work, whose results are "
        "then used (default 0: exit with 5)",
    )


def _paths(parser: Any, flag: str, text: str) -> None:
    parser.add_argument(flag, type=Path, nargs="*", default=[], metavar="PATH", help=text)
