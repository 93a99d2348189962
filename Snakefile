# kdpipe: which distillation method is worth it? README.md says how; config.yaml holds the settings.
import os

from snakemake.utils import min_version

min_version("9.0")


configfile: "config.yaml"


# for `--sdm apptainer` only, see docs/cluster.md
container: os.environ.get("KDPIPE_IMAGE", "envs/kdpipe.sif")


include: "workflow/rules/study.smk"
include: "workflow/rules/common.smk"
include: "workflow/rules/configure.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/cohort.smk"
include: "workflow/rules/tune.smk"
include: "workflow/rules/profile.smk"
include: "workflow/rules/predict.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/chosen.smk"
include: "workflow/rules/ship.smk"


# hours and disk of what starts now; `kdpipe plan` says it at any time
onstart:
    shell("exec python -m kdpipe plan /dev/stdin <<< {CONFIGURED:q} >&2")


localrules:
    all,
    data,
    teachers,
    students,
    predictions,
    profiles,
    tables,
    ship,


rule all:
    default_target: True
    input:
        TABLES,
        PATHS.report(STUDY.study),


rule data:
    input:
        [f"{PLAN.prepared(cell)}/cases.tsv" for cell in CELLS.values()],


rule teachers:
    input:
        [f"{folder}/model.pt" for folder, cell in CELLS.items() if cell.role == "teacher"],


rule students:
    input:
        [f"{folder}/model.pt" for folder, cell in CELLS.items() if cell.role == "student"],


rule predictions:
    input:
        [f"{folder}/predictions" for folder in CELLS],


rule profiles:
    input:
        [f"{folder}/profile.json" for folder in PROFILES],


rule tables:
    input:
        TABLES,


rule ship:
    input:
        [f"{folder}/MODEL_CARD.md" for folder in SHIPPED],
