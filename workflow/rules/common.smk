# What all rules share: the checked study, its plan, and digests. No logic beyond look-ups.
import os
import sys
from pathlib import Path

import kdpipe
from kdpipe.config import load_study
from kdpipe.errors import KdpipeError
from kdpipe.forecast import forecast_power
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
RESOURCES = STUDY.resources
CONFIGURED = canonical(config)
TABLES = expand(
    f"{PATHS.tables(STUDY.study)}/{{name}}",
    name=["scores.csv", "results.csv", "results.md", "comparisons.md", "claim.json"],
)


wildcard_constraints:
    **WILDCARDS,


def code(stage):
    """Params function: digest of the code that a stage runs, for the cell where there is one."""

    def digest_of(wildcards):
        cell = TRAININGS.get(wildcards.get("cell")) or PROFILES.get(wildcards.get("profile"))
        return code_digest(*PLAN.stage_modules(stage, cell))

    return digest_of


def package_files(pattern):
    """Files of the package that are no code, sorted."""
    return sorted(Path(kdpipe.__file__).parent.glob(pattern))


def grows(amount):
    """Resource function: `amount` in the first attempt, twice in the second, and so on."""
    return lambda wildcards, attempt: amount * attempt


def beside(name):
    """Params function: a path in the folder of the first output, which is no output itself."""
    return lambda wildcards, output: os.path.join(os.path.dirname(output[0]), name)


def of_cell(path, cells=CELLS):
    """Input function: `path` with the folders {raw}, {prepared}, ... of the wildcards' cell."""

    def resolve(wildcards):
        cell = cells[wildcards.cell]
        dataset = cell.dataset.name
        return path.format(
            raw=PATHS.raw(dataset),
            prepared=PLAN.prepared(cell),
            fold=PATHS.fold(dataset=dataset, split=cell.split, fold=cell.fold),
            predict=PATHS.stage(dataset, "predict"),
            evaluate=PATHS.stage(dataset, "evaluate"),
        )

    return resolve


def weight_files(wildcards):
    """Input function: what a cell's network that is trained already comes from, or nothing."""
    return PLAN.weight_files(CELLS[wildcards.cell])


def network_files(wildcards):
    """Input function: files that a profiled network's architecture comes from, or nothing."""
    return PLAN.network_files(PROFILES[wildcards.profile])


def teacher_model(wildcards):
    """Input function: model.pt of the cell's teacher, or nothing."""
    folder = PLAN.teacher_folder(TRAININGS[wildcards.cell])
    return f"{folder}/model.pt" if folder else []
