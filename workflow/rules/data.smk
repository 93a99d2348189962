# From a source to prepared images and a split.
from kdpipe.provenance import digest


rule fetch:
    input:
        run=f"{PATHS.raw()}/run.json",
        # an edit of a local source is seen
        files=lambda wildcards: PLAN.intake.source_files(wildcards.dataset),
    output:
        manifest=f"{PATHS.raw()}/manifest.tsv",
    log:
        "logs/fetch/{dataset}.log",
    benchmark:
        "benchmarks/fetch/{dataset}.tsv"
    retries: retried(RESOURCES.light.retries)
    conda:
        "../../envs/kdpipe.yaml"
    threads: 1
    resources:
        mem_mb=grows(RESOURCES.light.mem_mb),
        runtime=grows(RESOURCES.light.runtime),
    params:
        code=code("fetch"),
        files=lambda wildcards: PLAN.intake.unpacked(wildcards.dataset),
        archives=lambda wildcards: PLAN.intake.archives(wildcards.dataset),
        labels=beside("labels"),
        # a file that an older one has replaced has a new size, if not a new date; of wildcards
        # alone, as Snakemake compares no params that are functions of the input
        sizes=lambda wildcards: digest(
            [os.path.getsize(file) for file in PLAN.intake.source_files(wildcards.dataset)]
        ),
    shell:
        "exec python -m kdpipe fetch --run {input.run} --files {params.files} --archives {params.archives}"
        " --labels {params.labels} --manifest {output.manifest} > {log} 2>&1"


rule prepare:
    input:
        run=f"{PATHS.prepared()}/run.json",
        # what structures are called is for the report: a new name prepares nothing again
        names=ancient(f"{PATHS.prepared()}/names/run.json"),
        manifest=f"{PATHS.raw()}/manifest.tsv",
    output:
        cases=f"{PATHS.prepared()}/cases.tsv",
        fingerprint=f"{PATHS.prepared()}/fingerprint.json",
    log:
        "logs/prepare/{dataset}/{preset}.log",
    benchmark:
        "benchmarks/prepare/{dataset}/{preset}.tsv"
    retries: retried(RESOURCES.prepare.retries)
    conda:
        "../../envs/kdpipe.yaml"
    threads: RESOURCES.prepare.threads
    resources:
        mem_mb=grows(RESOURCES.prepare.mem_mb),
        runtime=grows(RESOURCES.prepare.runtime),
    params:
        code=code("prepare"),
        # no outputs: what is prepared survives a failure, and a rerun goes on from there; and
        # what the checks found is to be read above all when they fail
        store=beside("cases"),
        integrity=beside("integrity.json"),
        report=beside("report.html"),
    shell:
        "exec python -m kdpipe prepare --run {input.run} --manifest {input.manifest} --store {params.store}"
        " --cases {output.cases} --fingerprint {output.fingerprint}"
        " --names {input.names} --integrity {params.integrity} --report {params.report} --code {params.code}"
        " --workers {threads} --memory-mb {resources.mem_mb}"
        " --wait-minutes {resources.runtime} > {log} 2>&1"


rule split:
    input:
        run=f"{PATHS.fold()}/run.json",
        cases=lambda wildcards: f"{PLAN.prepared_of(wildcards.dataset)}/cases.tsv",
    output:
        split=f"{PATHS.fold()}/split.json",
    log:
        "logs/split/{dataset}/{split}/fold{fold}.log",
    benchmark:
        "benchmarks/split/{dataset}/{split}/fold{fold}.tsv"
    localrule: True
    conda:
        "../../envs/kdpipe.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES.light.mem_mb,
        runtime=RESOURCES.light.runtime,
    params:
        code=code("split"),
        integrity=lambda wildcards: f"{PLAN.prepared_of(wildcards.dataset)}/integrity.json",
    shell:
        "exec python -m kdpipe split --run {input.run} --cases {input.cases}"
        " --integrity {params.integrity} --out {output.split} > {log} 2>&1"
