# What the rules ask of the study: constraints, params, resources and input functions; look-ups only.
import inspect
import os
from functools import cache
from pathlib import Path

import kdpipe
from kdpipe.paths import WILDCARDS
from kdpipe.provenance import code_digest


wildcard_constraints:
    **WILDCARDS,


def asked_once(function):
    """Keep the signature with the function: Snakemake asks several times a job what it takes."""
    function.__signature__ = inspect.signature(function)
    return function


def code(stage):
    """Params function: digest of the code that a stage runs, for the cell where there is one."""

    @asked_once
    def digest_of(wildcards):
        cell = TRAININGS.get(wildcards.get("cell")) or PROFILES.get(wildcards.get("profile"))
        return code_digest(*PLAN.stage_modules(stage, cell))

    return digest_of


def package_files(pattern):
    """Files of the package that are no code, sorted."""
    return sorted(Path(kdpipe.__file__).parent.glob(pattern))


def grows(amount):
    """Resource function: `amount` in the first attempt, twice in the second, and so on."""
    return asked_once(lambda wildcards, attempt: amount * attempt)


def retried(amount):
    """Retries of a rule: none within a SLURM job, which would repeat it with the same memory."""
    return amount if workflow.is_main_process else 0


def all_cores(otherwise):
    """Cores of the machine that Snakemake was given; in a SLURM job and for one, `otherwise`."""
    return (workflow.is_main_process and workflow.resource_settings.cores) or otherwise


def beside(name):
    """Params function: a path in the folder of the first output, which is no output itself."""
    return asked_once(lambda wildcards, output: os.path.join(os.path.dirname(output[0]), name))


def kept(path):
    """Output of a student: Snakemake need not delete it first where a cohort looks at it."""
    return update(path) if STUDY.cohort else path


@cache
def folders(dataset, split, fold):
    """What cells of a split share, by the names that `of_cell` understands."""
    return {
        "raw": PATHS.raw(dataset),
        "prepared": PLAN.prepared_of(dataset),
        "fold": PATHS.fold(dataset=dataset, split=split, fold=fold),
        "predict": PATHS.stage(dataset, "predict"),
        "evaluate": PATHS.stage(dataset, "evaluate"),
    }


def of_cell(path, cells=CELLS):
    """Input function: `path` with the folders {raw}, {prepared}, ... of the wildcards' cell."""

    @asked_once
    def resolve(wildcards):
        cell = cells[wildcards.cell]
        return path.format(**folders(cell.dataset.name, cell.split, cell.fold))

    return resolve


@asked_once
def weight_files(wildcards):
    """Input function: what a cell's network that is trained already comes from, or nothing."""
    return PLAN.weight_files(CELLS[wildcards.cell])


@asked_once
def network_files(wildcards):
    """Input function: files that a profiled network's architecture comes from, or nothing."""
    return PLAN.network_files(PROFILES[wildcards.profile])


@asked_once
def ticket(wildcards):
    """Input function: what says that the cell's cohort is trained, or nothing."""
    return TICKETS.get(wildcards.cell, [])


@asked_once
def teacher_model(wildcards):
    """Input function: model.pt of the cell's teacher, or nothing."""
    folder = PLAN.teacher_folder(TRAININGS[wildcards.cell])
    return f"{folder}/model.pt" if folder else []
