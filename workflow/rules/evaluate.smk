# Scores of every test case; after the preparation, the only stage that opens test labels.


rule evaluate:
    input:
        run=of_cell("{evaluate}/run.json"),
        cell="{cell}/run.json",
        predictions="{cell}/predictions",
        split=of_cell("{fold}/split.json"),
        manifest=of_cell("{raw}/manifest.tsv"),
    output:
        scores="{cell}/metrics.csv",
    log:
        "logs/evaluate/{cell}.log",
    benchmark:
        "benchmarks/evaluate/{cell}.tsv"
    retries: retried(RESOURCES.evaluate.retries)
    conda:
        "../../envs/kdpipe.yaml"
    threads: RESOURCES.evaluate.threads
    resources:
        mem_mb=grows(RESOURCES.evaluate.mem_mb),
        runtime=grows(RESOURCES.evaluate.runtime),
    params:
        code=code("evaluate"),
        prepared=of_cell("{prepared}"),  # labels on the network's grid, for protocols that want it
    shell:
        "exec python -m kdpipe evaluate --run {input.run} --cell {input.cell}"
        " --prediction {input.predictions} --split {input.split} --manifest {input.manifest}"
        " --prepared {params.prepared} --workers {threads} --out {output.scores} > {log} 2>&1"
