# The best student of each split, chosen on validation data: in other forms, and with its papers.
from kdpipe.provenance import digest, file_digest


checkpoint choose_student:
    input:
        run=f"{SHIP}/choice/run.json",
        facts=candidates("{folder}/model.json"),
        costs=candidates("{profile}/profile.json"),
    output:
        choice=f"{SHIP}/choice.json",
    log:
        "logs/choose_student/{dataset}/{split}/fold{fold}/{study}.log",
    localrule: True
    conda:
        "../../envs/kdpipe.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES.light.mem_mb,
        runtime=RESOURCES.light.runtime,
    params:
        code=code("choose_student"),
    shell:
        "exec python -m kdpipe choose-student --run {input.run} --out {output.choice} > {log} 2>&1"


rule export:
    input:
        run=f"{SHIP}/run.json",
        model=chosen_model,
        split=f"{PATHS.fold()}/split.json",
        cases=lambda wildcards: f"{PLAN.prepared_of(wildcards.dataset)}/cases.tsv",
        manifest=f"{PATHS.raw()}/manifest.tsv",
    output:
        folder=directory(f"{SHIP}/export"),
    log:
        "logs/export/{dataset}/{split}/fold{fold}/{study}.log",
    benchmark:
        "benchmarks/export/{dataset}/{split}/fold{fold}/{study}.tsv"
    retries: retried(RESOURCES.export.retries)
    conda:
        "../../envs/kdpipe.yaml"
    threads: RESOURCES.export.threads
    resources:
        mem_mb=grows(RESOURCES.export.mem_mb),
        runtime=grows(RESOURCES.export.runtime),
    params:
        code=chosen_code,
        prepared=lambda wildcards: PLAN.prepared_of(wildcards.dataset),
    shell:
        "exec python -m kdpipe export --run {input.run} --model {input.model}"
        " --prepared {params.prepared} --split {input.split} --manifest {input.manifest}"
        " --out {output.folder} > {log} 2>&1"


rule model_card:
    input:
        run=f"{SHIP}/card/run.json",
        choice=f"{SHIP}/choice.json",
        facts=chosen_facts,
        export=f"{SHIP}/export",
        split=f"{PATHS.fold()}/split.json",
        manifest=f"{PATHS.raw()}/manifest.tsv",
        scores=f"{PATHS.tables()}/scores.csv",
        comparisons=f"{PATHS.tables()}/comparisons.csv",
    output:
        card=f"{SHIP}/MODEL_CARD.md",
        cost=f"{SHIP}/cost.json",
    log:
        "logs/model_card/{dataset}/{split}/fold{fold}/{study}.log",
    benchmark:
        "benchmarks/model_card/{dataset}/{split}/fold{fold}/{study}.tsv"
    localrule: True
    conda:
        "../../envs/kdpipe.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES.light.mem_mb,
        runtime=RESOURCES.light.runtime,
    params:
        code=code("model_card"),
        template=digest([file_digest(file) for file in package_files("templates/model_card.*")]),
    shell:
        "exec python -m kdpipe model-card --run {input.run} --choice {input.choice}"
        " --export {input.export} --split {input.split} --manifest {input.manifest}"
        " --scores {input.scores} --comparisons {input.comparisons}"
        " --cost {output.cost} --out {output.card} > {log} 2>&1"
