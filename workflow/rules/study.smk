# The checked study and what follows from it for all rules: the plan, the cells, the cohorts.
import os
import sys

import kdpipe
from kdpipe.cohorts import cohorts_of, folder_of, members_of
from kdpipe.commands.forecast import forecast_power
from kdpipe.config import load_study
from kdpipe.engine.slots import JOBS_PER_GPU
from kdpipe.errors import KdpipeError
from kdpipe.plan import Plan
from kdpipe.provenance import canonical, code_digest
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
