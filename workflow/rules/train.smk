# Teachers, then students: the same engine, one job a cell of the grid.
from kdpipe.cohorts import FOLDER as COHORT_FOLDER
from kdpipe.paths import DEFAULT_STUDENT
from kdpipe.provenance import digest, quick_digest


rule train_teacher:
    input:
        run="{cell}/run.json",
        split=of_cell("{fold}/split.json"),
        cases=of_cell("{prepared}/cases.tsv"),
        weights=weight_files,  # of a teacher that is trained already, and validated here
    output:
        model="{cell}/model.pt",
        facts="{cell}/model.json",
        history="{cell}/train.csv",
    log:
        "logs/train/{cell}.log",
    benchmark:
        "benchmarks/train/{cell}.tsv"
    wildcard_constraints:
        cell=r".+/teachers/.+/seed\d+",
    retries: retried(RESOURCES.train.retries)
    conda:
        "../../envs/kdpipe.yaml"
    threads: RESOURCES.train.threads
    resources:
        mem_mb=grows(RESOURCES.train.mem_mb),
        runtime=grows(RESOURCES.train.runtime),
        gpu=RESOURCES.train.gpu,
        # not params: neither changes the result, and a change must not train again
        checkpoint_seconds=RESOURCES.train.checkpoint_seconds,
        loaders=RESOURCES.train.loaders,
    params:
        code=code("train"),
        prepared=of_cell("{prepared}"),
        state=beside("checkpoint"),  # no output: Snakemake deletes the outputs of a failed job
        # a file that one of an older date has replaced, see fetch
        weights=lambda wildcards: digest(
            [quick_digest(file) for file in PLAN.weight_files(CELLS[wildcards.cell])]
        ),
    shell:
        "exec python -m kdpipe train --run {input.run} --prepared {params.prepared} --split {input.split}"
        " --state {params.state} --model {output.model} --code {params.code}"
        " --checkpoint-seconds {resources.checkpoint_seconds}"
        " --loaders {resources.loaders} --processes {resources.gpu}"
        " --wait-minutes {resources.runtime} > {log} 2>&1"


rule distill:
    input:
        run="{cell}/run.json",
        split=of_cell("{fold}/split.json", TRAININGS),
        cases=of_cell("{prepared}/cases.tsv", TRAININGS),
        teacher=teacher_model,
        cohort=ancient(ticket),
    output:  # in a study of cohorts kept until replaced: see cohort.smk
        model=kept("{cell}/model.pt"),
        facts=kept("{cell}/model.json"),
        history=kept("{cell}/train.csv"),
    log:
        "logs/train/{cell}.log",
    benchmark:
        "benchmarks/train/{cell}.tsv"
    wildcard_constraints:
        cell=DEFAULT_STUDENT,
    retries: retried(RESOURCES.train.retries)
    conda:
        "../../envs/kdpipe.yaml"
    threads: RESOURCES.train.threads
    resources:
        mem_mb=grows(RESOURCES.train.mem_mb),
        runtime=grows(RESOURCES.train.runtime),
        gpu=RESOURCES.train.gpu,
        # not params: neither changes the result, and a change must not train again
        checkpoint_seconds=RESOURCES.train.checkpoint_seconds,
        loaders=RESOURCES.train.loaders,
    params:
        code=code("train"),
        prepared=of_cell("{prepared}", TRAININGS),
        state=beside("checkpoint"),
        model=beside("model.pt"),
        teacher=lambda wildcards, input: f"--teacher {input.teacher}" if input.teacher else "",
        # a cohort's result is taken; of a student with tuned settings the choice
        choice=lambda wildcards, output: f"--trained {os.path.dirname(output[0])}/{COHORT_FOLDER}",
    shell:
        "exec python -m kdpipe distill --run {input.run} --prepared {params.prepared} --split {input.split}"
        " --state {params.state} --model {params.model} {params.teacher} {params.choice} --code {params.code}"
        " --checkpoint-seconds {resources.checkpoint_seconds}"
        " --loaders {resources.loaders} --processes {resources.gpu}"
        " --wait-minutes {resources.runtime} > {log} 2>&1"
