# What all rules share: the checked study, its plan, and digests. No logic beyond look-ups.
import inspect
import os
import sys
from functools import cache
from pathlib import Path

import kdpipe
from kdpipe.cohorts import FOLDER as COHORT_FOLDER
from kdpipe.cohorts import cohorts_of, folder_of, members_of
from kdpipe.config import load_study
from kdpipe.engine.slots import JOBS_PER_GPU
from kdpipe.errors import KdpipeError
from kdpipe.commands.forecast import forecast_power
from kdpipe.paths import DEFAULT_STUDENT, TRIAL_STUDENT, TUNED_STUDENT, WILDCARDS
from kdpipe.plan import Plan
from kdpipe.provenance import canonical, code_digest, digest, file_digest, quick_digest
from kdpipe.runs import run_files

# Jobs run the Python of this Snakemake, activated or not, and the kdpipe whose code is digested.
for variable, folder in (
    ("PATH", os.path.dirname(sys.executable)),
    ("PYTHONPATH", os.path.dirname(os.path.dirname(kdpipe.__file__))),
):
    os.environ[variable] = os.pathsep.join(filter(None, [folder, os.environ.get(variable)]))

ORIGINS = [
    *map(str, workflow.configfiles),
    *(["--config"] if workflow.config_settings.config else []),
]

try:
    STUDY = load_study(config, " + ".join(ORIGINS))
    PLAN = Plan(STUDY)
    PLAN.check_sources()
    RUNS = run_files(PLAN)
    COHORTS = cohorts_of(PLAN)
except KdpipeError as error:
    print(f"kdpipe: error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)

if workflow.is_main_process:
    for warning in PLAN.intake.warnings():
        print(f"kdpipe: warning: {warning}", file=sys.stderr)
    for line in forecast_power(PLAN):
        print(f"kdpipe: {line}", file=sys.stderr)

PATHS, CELLS, PROFILES = PLAN.paths, PLAN.cells, PLAN.profiles
TRAININGS = CELLS | PLAN.trials  # those of trials are neither predicted nor scored
MEMBERS = [
    members_of(cohort, RUNS, lambda cell: code_digest(*PLAN.stage_modules("train", cell)))
    for cohort in COHORTS
]
TICKETS = {folder_of(ticket): ticket for members in MEMBERS for ticket in members}
RESOURCES = STUDY.resources
os.environ[JOBS_PER_GPU] = str(RESOURCES.jobs_per_gpu)  # jobs look it up: kdpipe.engine.slots
CONFIGURED = canonical(config)
TABLES = expand(
    f"{PATHS.tables(STUDY.study)}/{{name}}",
    name=["scores.csv", "results.csv", "results.md", "comparisons.md", "claim.json"],
)
SHIPPED = [
    PATHS.ship(STUDY.study, dataset=use.name, split=split, fold=fold)
    for use, split, fold in PLAN.folds()
]


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
