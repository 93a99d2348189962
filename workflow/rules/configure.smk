# Settings of every stage and cell, one file each.


rule configure:
    # one run.json a stage or cell: rewritten, and its dependents rerun, only when it changes
    output:
        run="{folder}/run.json",
    log:
        "logs/configure/{folder}.log",
    localrule: True
    conda:
        "../../envs/kdpipe.yaml"
    resources:
        mem_mb=RESOURCES.light.mem_mb,
        runtime=RESOURCES.light.runtime,
    params:
        run=lambda wildcards: canonical(RUNS[f"{wildcards.folder}/run.json"]),
    shell:
        "printf '%s\\n' {params.run:q} > {output.run} 2> {log}"
