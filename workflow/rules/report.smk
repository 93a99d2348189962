# The tables of the study.


rule tabulate:
    input:
        run=f"{PATHS.tables()}/run.json",
        scores=expand("{cell}/metrics.csv", cell=CELLS),
        facts=expand("{cell}/model.json", cell=CELLS),
        costs=expand("{profile}/profile.json", profile=PROFILES),
    output:
        scores=f"{PATHS.tables()}/scores.csv",
        results=f"{PATHS.tables()}/results.csv",
        markdown=f"{PATHS.tables()}/results.md",
        latex=f"{PATHS.tables()}/results.tex",
    log:
        "logs/tables/{study}.log",
    benchmark:
        "benchmarks/tables/{study}.tsv"
    localrule: True
    conda:
        "../../envs/kdpipe.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES.light.mem_mb,
        runtime=RESOURCES.light.runtime,
    params:
        code=code("tables"),
        folder=beside(""),
    shell:
        "exec python -m kdpipe tables --run {input.run} --out {params.folder} > {log} 2>&1"
