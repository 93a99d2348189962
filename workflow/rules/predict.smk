# Label maps of the test cases, on the native grid; if a protocol wants it, on the prepared too.


rule predict:
    input:
        run=of_cell("{predict}/run.json"),
        model="{cell}/model.pt",
        split=of_cell("{fold}/split.json"),
        cases=of_cell("{prepared}/cases.tsv"),
    output:
        predictions=directory("{cell}/predictions"),
    log:
        "logs/predict/{cell}.log",
    benchmark:
        "benchmarks/predict/{cell}.tsv"
    retries: retried(RESOURCES.predict.retries)
    conda:
        "../../envs/kdpipe.yaml"
    threads: RESOURCES.predict.threads
    resources:
        mem_mb=grows(RESOURCES.predict.mem_mb),
        runtime=grows(RESOURCES.predict.runtime),
        gpu=RESOURCES.predict.gpu,
    params:
        code=code("predict"),
        prepared=of_cell("{prepared}"),
    shell:
        "exec python -m kdpipe predict --run {input.run} --model {input.model} --prepared {params.prepared}"
        " --split {input.split} --out {output.predictions} > {log} 2>&1"
