"""What each sub-command runs: from parsed arguments and ``run.json`` to the module that does it.

Each function imports what it needs when it runs, so that a stage without a network does not wait
for torch.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from kdpipe.atomic import mark_of, write_json
from kdpipe.errors import ConfigError
from kdpipe.json_files import read_object


def run_fetch(given: argparse.Namespace) -> None:
    """Bring a data set's files here and write its manifest."""
    from kdpipe.data.acquisition.fetch import fetch

    run = read_object(given.run, "access", "layout", "ids", "files", "source")
    fetch(run, given.files, given.archives, given.labels, given.manifest)


def run_prepare(given: argparse.Namespace) -> None:
    """Check, resample and store the images of a manifest."""
    from kdpipe.data.checks.verdict import Checks
    from kdpipe.data.manifest import read_manifest
    from kdpipe.data.preparation.prepare import prepare
    from kdpipe.labels import Labels
    from kdpipe.lock import FolderLock
    from kdpipe.presets import Preparation
    from kdpipe.provenance import digest
    from kdpipe.rules import Rules

    run = read_object(given.run, "preset", "labels", "channels")
    rules = run.pop("rules", None)
    checks = None
    if rules is not None and given.integrity is not None:
        files = (given.integrity, given.integrity.with_suffix(".tsv"), given.report)
        names = read_object(given.names, "names") if given.names else {}
        checks = Checks(Rules.model_validate(rules | names), *files)
    with FolderLock(given.store, wait=60.0 * given.wait_minutes):
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
            checks=checks,
        )


def run_split(given: argparse.Namespace) -> None:
    """Divide the prepared cases."""
    from kdpipe.data.splits.split import split_cases

    run = read_object(given.run, "dataset", "fold", "rule")
    split_cases(run, given.cases, given.out, given.integrity)


def run_train(given: argparse.Namespace) -> None:
    """Train a teacher or a student, or take over a teacher that is trained already."""
    from kdpipe.engine.signals import StopRequest
    from kdpipe.engine.slots import gpu_slot

    before = mark_of(given.model)
    adopts = "adopt" in read_object(given.run, "cell", "network", "targets", "patch")
    count = 1 if adopts else max(1, given.processes)
    with StopRequest(given.on_stop), gpu_slot(count):  # from before the imports: they take seconds
        if count > 1 and "LOCAL_RANK" not in os.environ:
            from kdpipe.engine.launch import launch

            launch(count, given.arguments, given.on_stop)
            return
        from kdpipe.engine.parallel import processes

        with processes():
            _train(given, before)


def _train(given: argparse.Namespace, before: tuple[int, int] | None) -> None:
    from kdpipe.data.splits.split import read_split
    from kdpipe.engine.adopt import adopt
    from kdpipe.engine.device import keep_freed_memory
    from kdpipe.engine.jobs import Job
    from kdpipe.engine.reuse import take_over, train_tuned
    from kdpipe.engine.shared import train_once

    keep_freed_memory()
    run = read_object(given.run, "cell", "network", "targets", "patch")
    job = Job(
        run=run,
        preparation=read_object(given.prepared / "run.json"),
        split=read_split(given.split),
        store=given.prepared / "cases",
        state=given.state,
        model=given.model,
        teacher=getattr(given, "teacher", None),
        code=given.code,
        checkpoint_seconds=given.checkpoint_seconds,
        loaders=given.loaders,
        on_stop=given.on_stop,
        wait=60.0 * given.wait_minutes,
        before=before,
    )
    if "tuned" not in run:
        stage = adopt if "adopt" in run else train_once
        ready = getattr(given, "trained", ())  # where a cohort may have trained it
        if not (ready and take_over(job, ready)):
            stage(job)
        return
    if not given.choice:
        raise ConfigError(f"{given.run} is of a tuned student: give its --choice")
    train_tuned(job, read_object(given.choice, "chosen", "trials"), given.trained)


def run_train_cohort(given: argparse.Namespace) -> None:
    """Train several students that see the same batches."""
    from kdpipe.commands.cohort import run_train_cohort

    run_train_cohort(given)


def run_choose(given: argparse.Namespace) -> None:
    """Choose the trial with the best validation Dice."""
    from kdpipe.engine.choose import choose

    run = read_object(given.run, "arm", "trials")
    write_json(
        given.out, choose(run, [read_object(file, "validation_dice") for file in given.facts])
    )


def run_profile(given: argparse.Namespace) -> None:
    """Measure what a network costs."""
    from kdpipe.engine.profile import profile
    from kdpipe.engine.slots import gpu_slot

    run = read_object(given.run, "network", "patch", "threads", "repeats")
    with gpu_slot(alone=True):
        write_json(given.out, profile(run))


def run_taps(given: argparse.Namespace) -> None:
    """List the places in a network that a feature method can look at."""
    from kdpipe.engine.candidates import describe_candidates

    print(describe_candidates(given.network, given.patch, given.channels, given.classes))


def run_evaluate(given: argparse.Namespace) -> None:
    """Score two folders, or the predictions of a cell."""
    from kdpipe.commands.evaluation import evaluate_by_hand, evaluate_cell, need

    if not given.run:
        evaluate_by_hand(given)
        return
    need(given, "cell", "manifest", "split")
    run = read_object(given.run, "structures", "protocols", "tolerances_mm", "has_spacing")
    evaluate_cell(given, run, read_object(given.cell, "cell")["cell"])


def run_tables(given: argparse.Namespace) -> None:
    """Write the tables of a study."""
    from kdpipe.report.tables import write_tables

    print(write_tables(read_object(given.run, "study", "cells"), given.out))


def run_compare(given: argparse.Namespace) -> None:
    """Decide which method is better, and write the claim."""
    from kdpipe.stats.write import write_comparisons

    print(write_comparisons(read_object(given.run, "study", "statistics"), given.tables))


def run_verify(given: argparse.Namespace) -> None:
    """Recompute a claim from its scores."""
    from kdpipe.stats.claim import verify_claim

    print(verify_claim(given.claim, given.scores))


def run_figures(given: argparse.Namespace) -> None:
    """Draw the figures of a study."""
    from kdpipe.figures.write import write_figures

    write_figures(read_object(given.run, "study", "cells"), given.tables, given.out)


def run_overlays(given: argparse.Namespace) -> None:
    """Draw contours of reference, teacher and students on slices of single cases."""
    from kdpipe.overlays.write import write_overlays

    write_overlays(read_object(given.run, "study", "cells", "datasets"), given.tables, given.out)


def run_report(given: argparse.Namespace) -> None:
    """Write the report of a study, one file that needs no network."""
    from kdpipe.report.page.write import write_report

    run = read_object(given.run, "study", "cells", "datasets")
    write_report(run, given.tables, given.figures, given.overlays, given.out)


def run_plan(given: argparse.Namespace) -> None:
    """Print what a study can show and what it will cost."""
    from kdpipe.commands.forecast import forecast_cost, forecast_power
    from kdpipe.config import read_study
    from kdpipe.plan import Plan

    plan = Plan(read_study(*given.files))
    print("\n".join([*forecast_power(plan), *forecast_cost(plan, given.tflops)]))


def run_list(given: argparse.Namespace) -> None:
    """Print a catalogue."""
    from kdpipe.commands.listing import catalogue

    entries = catalogue(given.what, given.cards)
    if given.json:
        print(json.dumps(entries, indent=2))
        return
    width = max((len(entry["name"]) for entry in entries), default=0)
    for entry in entries:
        print(f"{entry['name']:<{width}}  {entry['summary']}")


def run_docs(given: argparse.Namespace) -> None:
    """Write the pages of the methods and networks."""
    from kdpipe.commands.pages import write_pages

    indices = write_pages(given.out)
    print(f"Written, to be read from {' and '.join(map(str, indices))}")


def run_new(given: argparse.Namespace) -> None:
    """Write the start of a new entry, or the card of a folder, and say what comes next."""
    if given.what == "dataset":
        from kdpipe.commands.new_dataset import new_dataset

        print(new_dataset(Path(given.entry).expanduser(), given.dataset, given.out))
        return
    from kdpipe.commands.scaffold import new_entry

    print(new_entry(given.what, given.entry))


def run_doctor(given: argparse.Namespace) -> None:
    """Print what a bug report needs."""
    from kdpipe.commands.listing import diagnosis

    for name, value in diagnosis().items():
        print(f"{name:<14}{value}")


def run_schema(given: argparse.Namespace) -> None:
    """Print the JSON schema of config.yaml."""
    from kdpipe.config import json_schema

    print(json.dumps(json_schema(), indent=2))
