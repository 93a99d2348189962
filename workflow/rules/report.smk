# From the scores of all cells to tables, decisions, figures and one report.
from kdpipe.provenance import digest, file_digest


rule tabulate:
    input:
        run=f"{PATHS.tables()}/run.json",
        scores=expand("{cell}/metrics.csv", cell=CELLS),
        facts=expand("{cell}/model.json", cell=CELLS),
        costs=expand("{profile}/profile.json", profile=PROFILES),
    output:
        scores=f"{PATHS.tables()}/scores.csv",
        results=f"{PATHS.tables()}/results.csv",
        wide=f"{PATHS.tables()}/wide.csv",
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


rule compare:
    input:
        run=f"{PATHS.tables()}/run.json",
        scores=f"{PATHS.tables()}/scores.csv",
        results=f"{PATHS.tables()}/results.csv",
    output:
        comparisons=f"{PATHS.tables()}/comparisons.csv",
        ranks=f"{PATHS.tables()}/ranks.csv",
        power=f"{PATHS.tables()}/power.csv",
        references=f"{PATHS.tables()}/references.csv",
        markdown=report(
            f"{PATHS.tables()}/comparisons.md",
            caption="../report/comparisons.rst",
            category="Results",
        ),
        latex=f"{PATHS.tables()}/comparisons.tex",
        claim=f"{PATHS.tables()}/claim.json",
    log:
        "logs/compare/{study}.log",
    benchmark:
        "benchmarks/compare/{study}.tsv"
    localrule: True
    conda:
        "../../envs/kdpipe.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES.light.mem_mb,
        runtime=RESOURCES.light.runtime,
    params:
        code=code("compare"),
        published=digest([file_digest(file) for file in package_files("stats/references/*.yaml")]),
        folder=beside(""),
    shell:
        "exec python -m kdpipe compare --run {input.run} --tables {params.folder} > {log} 2>&1"


rule figures:
    input:
        run=f"{PATHS.tables()}/run.json",
        scores=f"{PATHS.tables()}/scores.csv",
        results=f"{PATHS.tables()}/results.csv",
        comparisons=f"{PATHS.tables()}/comparisons.csv",
        ranks=f"{PATHS.tables()}/ranks.csv",
        histories=expand("{cell}/train.csv", cell=CELLS),
    output:
        folder=report(
            directory(PATHS.figures()),
            patterns=["{name}.svg"],
            caption="../report/figures.rst",
            category="Figures",
        ),
    log:
        "logs/figures/{study}.log",
    benchmark:
        "benchmarks/figures/{study}.tsv"
    localrule: True
    conda:
        "../../envs/kdpipe.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES.light.mem_mb,
        runtime=RESOURCES.light.runtime,
    params:
        code=code("figures"),
        tables=lambda wildcards, input: os.path.dirname(input.run),
    shell:
        "exec python -m kdpipe figures --run {input.run} --tables {params.tables}"
        " --out {output.folder} > {log} 2>&1"


rule overlays:
    input:
        run=f"{PATHS.tables()}/run.json",
        scores=f"{PATHS.tables()}/scores.csv",
        predictions=expand("{cell}/predictions", cell=CELLS),
    output:
        folder=directory(PATHS.overlays()),
    log:
        "logs/overlays/{study}.log",
    benchmark:
        "benchmarks/overlays/{study}.tsv"
    conda:
        "../../envs/kdpipe.yaml"
    threads: 1
    resources:
        mem_mb=grows(RESOURCES.evaluate.mem_mb),
        runtime=RESOURCES.light.runtime,
    params:
        code=code("overlays"),
        tables=lambda wildcards, input: os.path.dirname(input.run),
    shell:
        "exec python -m kdpipe overlays --run {input.run} --tables {params.tables}"
        " --out {output.folder} > {log} 2>&1"


rule report:
    input:
        run=f"{PATHS.tables()}/run.json",
        scores=f"{PATHS.tables()}/scores.csv",
        results=f"{PATHS.tables()}/results.csv",
        claim=f"{PATHS.tables()}/claim.json",
        facts=expand("{cell}/model.json", cell=CELLS),
        figures=PATHS.figures(),
        overlays=PATHS.overlays(),
    output:
        page=report(PATHS.report(), caption="../report/report.rst", category="Results"),
    log:
        "logs/report/{study}.log",
    benchmark:
        "benchmarks/report/{study}.tsv"
    localrule: True
    conda:
        "../../envs/kdpipe.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES.light.mem_mb,
        runtime=RESOURCES.light.runtime,
    params:
        code=code("report"),
        templates=digest([file_digest(file) for file in package_files("templates/report.*")]),
        tables=lambda wildcards, input: os.path.dirname(input.run),
    shell:
        "exec python -m kdpipe report --run {input.run} --tables {params.tables}"
        " --figures {input.figures} --overlays {input.overlays} --out {output.page} > {log} 2>&1"
