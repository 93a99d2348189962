# Equal budget: the trials of each method, the choice of one on validation data, the tuned students.
from kdpipe.paths import TRIAL_STUDENT, TUNED_STUDENT


use rule distill as distill_trial with:
    output:  # no model: a trial that diverges has none, and is lost without stopping the study
        facts=kept("{cell}/model.json"),
        history=kept("{cell}/train.csv"),
    wildcard_constraints:
        cell=TRIAL_STUDENT,


rule choose:
    input:
        run="{arm}/run.json",
        facts=lambda wildcards: expand(
            "{trial}/model.json", trial=PLAN.trials_of(PLAN.choices[wildcards.arm])
        ),
    output:
        choice="{arm}/choice.json",
    log:
        "logs/choose/{arm}.log",
    localrule: True
    conda:
        "../../envs/kdpipe.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES.light.mem_mb,
        runtime=RESOURCES.light.runtime,
    params:
        code=code("choose"),
    shell:
        "exec python -m kdpipe choose --run {input.run} --facts {input.facts}"
        " --out {output.choice} > {log} 2>&1"


use rule distill as distill_tuned with:
    input:
        run="{cell}/run.json",
        split=of_cell("{fold}/split.json"),
        cases=of_cell("{prepared}/cases.tsv"),
        teacher=teacher_model,
        choice=lambda wildcards: f"{PLAN.arm(CELLS[wildcards.cell])}/choice.json",
        # with the settings that were chosen, one of these may be the very same training
        trained=lambda wildcards: expand(
            "{trained}/model.json", trained=PLAN.same_seed(CELLS[wildcards.cell])
        ),
    output:  # kept until they are replaced: a new choice of the same settings trains nothing
        model=update("{cell}/model.pt"),
        facts=update("{cell}/model.json"),
        history=update("{cell}/train.csv"),
    wildcard_constraints:
        cell=TUNED_STUDENT,
    params:
        choice=lambda wildcards, input: f"--choice {input.choice} --trained"
        + "".join(f" {os.path.dirname(file)}" for file in input.trained),
