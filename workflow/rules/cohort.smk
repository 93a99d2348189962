# One job for students that see the same batches, if the study says `cohort`: docs/cohort.md.
#
# Such a job is asked for by a ticket that is not there: its name changes with the settings and the
# code of its member. So nothing of a single member may be an input, or a parameter that Snakemake
# compares: the students that were not touched would then be looked at as if they had been, or,
# behind `ancient`, not be looked at at all. Parameters that are made from outputs are not compared.


def told(members):
    """Params function: what a job must know of its members, as JSON."""
    return asked_once(lambda wildcards, output: canonical(members))


for number, (cohort, members) in enumerate(zip(COHORTS, MEMBERS)):
    shared = folders(cohort.first.dataset.name, cohort.first.split, cohort.first.fold)
    teacher = PLAN.teacher_folder(cohort.first)
    memory, minutes = RESOURCES.train.of_cohort(len(cohort.cells))

    rule:
        name:
            f"train_cohort_{number}"
        input:
            split=f"{shared['fold']}/split.json",
            cases=f"{shared['prepared']}/cases.tsv",
            teacher=f"{teacher}/model.pt" if teacher else [],
        output:
            [update(ticket) for ticket in members],
        log:
            f"logs/train/{cohort.name}.log",
        benchmark:
            f"benchmarks/train/{cohort.name}.tsv"
        retries: retried(RESOURCES.train.retries)
        conda:
            "../../envs/kdpipe.yaml"
        threads: RESOURCES.train.threads
        resources:
            mem_mb=grows(memory),
            runtime=grows(minutes),
            gpu=RESOURCES.train.gpu,
            checkpoint_seconds=RESOURCES.train.checkpoint_seconds,
            loaders=RESOURCES.train.loaders,
        params:
            members=told(members),
            prepared=shared["prepared"],
            teacher=lambda wildcards, input: f"--teacher {input.teacher}" if input.teacher else "",
        shell:
            "exec python -m kdpipe train-cohort --members /dev/stdin --prepared {params.prepared}"
            " --split {input.split} {params.teacher}"
            " --checkpoint-seconds {resources.checkpoint_seconds}"
            " --loaders {resources.loaders} <<< {params.members:q} > {log} 2>&1"
