"""The command ``kdpipe``: one sub-command a stage, the only thing that rules call.

Each works without Snakemake. Sub-commands import what they need when they run, so that a stage
without a network does not wait for torch.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdpipe import __version__
from kdpipe.errors import ConfigError, KdpipeError

_EPILOG = """\
exit codes:
  0   done
  2   the configuration or the command line is wrong
  3   the data are wrong; the message names the case
  4   training diverged
  75  stopped by a signal with a checkpoint; the same command goes on from there
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command and return the exit code."""
    parser = build_parser()
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        given.command(given)
    except KdpipeError as error:
        print(f"kdpipe {given.name}: error: {error}", file=sys.stderr)
        return error.exit_code
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

    fetch = _add(commands, "fetch", _fetch, "bring a data set's files here and list them")
    _path(fetch, "--run", "run.json of the data set's source")
    _path(fetch, "--raw", "folder for downloaded or generated files")
    _path(fetch, "--manifest", "table of cases to write")

    prepare = _add(commands, "prepare", _prepare, "check, resample and store the images")
    _path(prepare, "--run", "run.json of the preparation")
    _path(prepare, "--manifest", "table of cases from fetch")
    _path(prepare, "--store", "folder of prepared cases; cases that are there are kept")
    _path(prepare, "--cases", "table of prepared cases to write")
    _path(prepare, "--fingerprint", "summary of the data set to write (JSON)")
    prepare.add_argument("--code", default="", help="digest of the code, kept with each case")
    prepare.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    prepare.add_argument("--memory-mb", type=int, help="bound for all processes together")

    split = _add(commands, "split", _split, "divide the patients into train, val and test")
    _path(split, "--run", "run.json of the split")
    _path(split, "--cases", "table of prepared cases")
    _path(split, "--out", "split.json to write")

    for name, text in (("train", "train a teacher"), ("distill", "train a student")):
        train = _add(commands, name, _train, text)
        _path(train, "--run", "run.json of the cell")
        _path(train, "--prepared", "folder written by prepare (run.json and cases/)")
        _path(train, "--split", "split.json")
        _path(train, "--state", "folder for checkpoints; kept when interrupted")
        _path(train, "--model", "model.pt to write; model.json and train.csv come beside it")
        train.add_argument("--code", default="", help="digest of the code, for the provenance")
        if name == "distill":
            _path(train, "--teacher", "model.pt of the teacher", required=False)

    predict = _add(commands, "predict", _predict, "segment the test cases of a split")
    _path(predict, "--run", "run.json of the prediction")
    _path(predict, "--model", "model.pt")
    _path(predict, "--prepared", "folder written by prepare")
    _path(predict, "--split", "split.json")
    _path(predict, "--out", "folder of label maps to write, on the native grid")

    _add_evaluate(commands)

    tables = _add(commands, "tables", _tables, "turn scores into the tables of a study")
    _path(tables, "--run", "run.json of the tables")
    _path(tables, "--out", "folder for results.csv, scores.csv, results.md and results.tex")

    listing = _add(commands, "list", _list, "show what can stand in a configuration")
    listing.add_argument("what", choices=("methods", "nets", "datasets", "studies", "protocols"))
    listing.add_argument("--json", action="store_true", help="machine-readable")
    listing.add_argument("--cards", action="append", default=[], help="folder with more cards")

    _add(commands, "doctor", _doctor, "show versions, processors and accelerators")
    _add(commands, "schema", _schema, "print the JSON schema of config.yaml")
    return parser


def _add_evaluate(commands: Any) -> None:
    evaluate = _add(commands, "evaluate", _evaluate, "score label maps against references")
    _path(evaluate, "--prediction", "folder of predicted label maps")
    _path(evaluate, "--out", "tidy table to write (CSV)")
    _path(evaluate, "--reference", "folder of reference label maps", required=False)
    _path(evaluate, "--labels", "YAML file: structure name: label or [labels]", required=False)
    evaluate.add_argument("--protocol", help="named metric protocol (default strict_mm)")
    evaluate.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    graph = evaluate.add_argument_group("instead of --reference and --labels, within a study")
    _path(graph, "--run", "run.json of the evaluation", required=False)
    _path(graph, "--cell", "run.json of the cell; its keys become columns", required=False)
    _path(graph, "--manifest", "table of cases from fetch", required=False)
    _path(graph, "--split", "split.json; its test cases are scored", required=False)


def _add(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=function, name=name)
    return parser


def _path(parser: Any, flag: str, text: str, required: bool = True) -> None:
    parser.add_argument(flag, type=Path, required=required, metavar="PATH", help=text)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a JSON object is expected")
    return content


# stages


def _fetch(given: argparse.Namespace) -> None:
    from kdpipe.data.fetch import fetch

    fetch(_json(given.run), given.raw, given.manifest)


def _prepare(given: argparse.Namespace) -> None:
    from kdpipe.cards import Labels, Preparation
    from kdpipe.data.layout import read_manifest
    from kdpipe.data.prepare import prepare
    from kdpipe.provenance import digest

    run = _json(given.run)
    prepare(
        read_manifest(given.manifest),
        Preparation.model_validate(run["preset"]),
        Labels.model_validate(run["labels"]),
        run["channels"],
        store=given.store,
        cases_tsv=given.cases,
        fingerprint=given.fingerprint,
        digest=digest(run, given.code),
        workers=given.workers,
        memory_mb=given.memory_mb,
    )


def _split(given: argparse.Namespace) -> None:
    from kdpipe.data.split import split_cases

    split_cases(_json(given.run), given.cases, given.out)


def _train(given: argparse.Namespace) -> None:
    from kdpipe.data.split import read_split
    from kdpipe.engine.device import keep_freed_memory
    from kdpipe.engine.train import Job, train

    keep_freed_memory()
    train(
        Job(
            run=_json(given.run),
            preparation=_json(given.prepared / "run.json"),
            split=read_split(given.split),
            store=given.prepared / "cases",
            state=given.state,
            model=given.model,
            teacher=getattr(given, "teacher", None),
            code=given.code,
        )
    )


def _predict(given: argparse.Namespace) -> None:
    from kdpipe.config import Inference
    from kdpipe.data.split import read_split
    from kdpipe.engine.device import keep_freed_memory, pick_device
    from kdpipe.infer.predict import predict_cases

    keep_freed_memory()
    predict_cases(
        model=given.model,
        store=given.prepared / "cases",
        cases=read_split(given.split)["test"],
        settings=Inference.model_validate(_json(given.run)),
        out=given.out,
        device=pick_device(),
    )


def _evaluate(given: argparse.Namespace) -> None:
    from kdpipe.metrics.folders import evaluate_folders

    if given.run:
        missing = [name for name in ("cell", "manifest", "split") if not getattr(given, name)]
        if missing:
            raise ConfigError(f"--run also needs {', '.join(f'--{name}' for name in missing)}")
        from kdpipe.data.layout import read_manifest
        from kdpipe.data.split import read_split

        run, cases = _json(given.run), read_split(given.split)["test"]
        labels = {case.case: case.label for case in read_manifest(given.manifest)}
        evaluate_folders(
            None,
            given.prediction,
            run["structures"],
            protocol=run["protocol"],
            out=given.out,
            workers=given.workers,
            keys=_json(given.cell)["cell"],
            references={case: labels[case] for case in cases},
        )
        return
    if not (given.reference and given.labels):
        raise ConfigError("give --reference and --labels (or, within a study, --run)")
    evaluate_folders(
        given.reference,
        given.prediction,
        _structures(given.labels),
        protocol=given.protocol or "strict_mm",
        out=given.out,
        workers=given.workers,
    )


def _structures(path: Path) -> dict[str, tuple[int, ...]]:
    """Read ``name: label`` or ``name: [labels]``."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {
            str(name): tuple(ids) if isinstance(ids, list) else (int(ids),)
            for name, ids in content.items()
            if ids != 0
        }
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: expected lines 'name: label', got: {error}") from None


def _tables(given: argparse.Namespace) -> None:
    from kdpipe.report.tables import write_tables

    print(write_tables(_json(given.run), given.out))


# looking around


def _list(given: argparse.Namespace) -> None:
    from kdpipe.listing import catalogue

    entries = catalogue(given.what, given.cards)
    if given.json:
        print(json.dumps(entries, indent=2))
        return
    width = max((len(entry["name"]) for entry in entries), default=0)
    for entry in entries:
        print(f"{entry['name']:<{width}}  {entry['summary']}")


def _doctor(given: argparse.Namespace) -> None:
    from kdpipe.listing import diagnosis

    for name, value in diagnosis().items():
        print(f"{name:<14}{value}")


def _schema(given: argparse.Namespace) -> None:
    from kdpipe.config import json_schema

    print(json.dumps(json_schema(), indent=2))
