# What a network costs: parameters, multiply-accumulates, latency and memory of one window.


rule profile:
    input:
        run="{profile}/run.json",
        files=network_files,
    output:
        costs="{profile}/profile.json",
    log:
        "logs/profile/{profile}.log",
    benchmark:
        "benchmarks/profile/{profile}.tsv"
    retries: retried(RESOURCES.profile.retries)
    conda:
        "../../envs/kdpipe.yaml"
    # on one machine nothing else runs beside a measurement
    threads: all_cores(RESOURCES.profile.threads)
    resources:
        mem_mb=grows(RESOURCES.profile.mem_mb),
        runtime=grows(RESOURCES.profile.runtime),
        gpu=RESOURCES.profile.gpu,
    params:
        code=code("profile"),
    shell:
        "exec python -m kdpipe profile --run {input.run} --out {output.costs} > {log} 2>&1"
