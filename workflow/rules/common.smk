# What all rules share: the checked study, its plan, and digests. No logic beyond look-ups.
import os
import sys

import kdpipe
from kdpipe.config import load_study
from kdpipe.errors import KdpipeError
from kdpipe.paths import WILDCARDS
from kdpipe.plan import Plan
from kdpipe.provenance import canonical, code_digest, digest, quick_digest
from kdpipe.runs import run_files

# Jobs run the Python of this Snakemake, activated or not, and the kdpipe whose code is digested.
for variable, folder in (
    ("PATH", os.path.dirname(sys.executable)),
    ("PYTHONPATH", os.path.dirname(os.path.dirname(kdpipe.__file__))),
):
    os.environ[variable] = os.pathsep.join(filter(None, [folder, os.environ.get(variable)]))

try:
    STUDY = load_study(config, " + ".join(map(str, workflow.configfiles)))
    PLAN = Plan(STUDY)
    PLAN.check_sources()
    RUNS = run_files(PLAN)
except KdpipeError as error:
    print(f"kdpipe: error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)

for warning in PLAN.intake.warnings():
    print(f"kdpipe: warning: {warning}", file=sys.stderr)

PATHS, CELLS, PROFILES = PLAN.paths, PLAN.cells, PLAN.profiles
RESOURCES = STUDY.resources
TABLES = expand(
    f"{PATHS.tables(STUDY.study)}/{{name}}",
    name=["scores.csv", "results.csv", "results.md", "results.tex"],
)


wildcard_constraints:
    **WILDCARDS,


def code(stage):
    """Params function: digest of the code that a stage runs, for the cell where there is one."""

    def digest_of(wildcards):
        cell = CELLS.get(wildcards.get("cell")) or PROFILES.get(wildcards.get("profile"))
        return code_digest(*PLAN.stage_modules(stage, cell))

    return digest_of


def grows(amount):
    """Resource function: `amount` in the first attempt, twice in the second, and so on."""
    return lambda wildcards, attempt: amount * attempt


def beside(name):
    """Params function: a path in the folder of the first output, which is no output itself."""
    return lambda wildcards, output: os.path.join(os.path.dirname(output[0]), name)


def of_cell(path):
    """Input function: `path` with the folders {raw}, {prepared}, ... of the wildcards' cell."""

    def resolve(wildcards):
        cell = CELLS[wildcards.cell]
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
    folder = PLAN.teacher_folder(CELLS[wildcards.cell])
    return f"{folder}/model.pt" if folder else []
