"""Everything that can go wrong, done to a study of fourteen trainings on a SLURM cluster.

Trainings are stopped (SIGSTOP) once they have saved a state, so that each fault hits one in the
midst of its work, however fast the machine is. SLURM wakes them before it ends them.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from slurm.study import BASELINES, LAB, ORPHAN, TEACHERS, Folder
from slurm.watch import Held, Process, Watch, slurm


@dataclass
class Outcome:
    """What the campaign left behind."""

    faulted: Folder
    calm: Folder
    watch: Watch
    hit: dict[str, dict[str, int]] = field(default_factory=dict)  # fault -> cell -> saved step
    together: list[Process] = field(default_factory=list)  # ran at the same time
    codes: dict[str, int] = field(default_factory=dict)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)


def run_campaign(root: Path, place: Path) -> Outcome:
    """Run the study undisturbed, here, and on the cluster with all the faults."""
    calm, faulted = Folder(place / "calm", root), Folder(place / "faulted", root)
    watch = Watch(faulted)
    outcome = Outcome(faulted, calm, watch)
    reference = calm.snakemake("run.log", "teachers", "students", "--cores", "1", slurm=False)
    outcome.started.append(reference)
    watch.start()
    try:
        held = _start(outcome)
        _break(outcome, held)
        _kill_snakemake(outcome)
        _finish(outcome)
        outcome.codes["undisturbed"] = reference.wait(1500)
    finally:
        for process in outcome.started:
            if process.poll() is None:
                process.kill()
        subprocess.run(["/usr/bin/scancel", "--user=root"], check=False)
        watch.stop()
        (place / "timeline.txt").write_text("\n".join(watch.timeline) + "\n")
    return outcome


def _start(outcome: Outcome) -> Held:
    """Six trainings on six GPUs, each with a saved state. One had too little memory before."""
    folder, watch = outcome.faulted, outcome.watch
    folder.let_fail("sbatch", 1)
    watch.note("Snakemake starts; sbatch fails once")
    outcome.started.append(folder.snakemake("first.log", "teachers", "students"))
    held = watch.hold([*TEACHERS, *BASELINES])
    outcome.together = [process for process, _ in held.values()]
    return held


def _break(outcome: Outcome, held: Held) -> None:
    """Hit each of them: one node's are preempted, one's node dies, and so on."""
    folder, watch = outcome.faulted, outcome.watch
    nodes: dict[str, list[str]] = {}  # SLURM filled them one by one, two trainings each
    for cell, (process, _) in held.items():
        nodes.setdefault(process.node, []).append(cell)
    preempted, dying, third = sorted(nodes)
    late, cancelled = nodes[third]
    faults = {"time limit": [late], "cancelled": [cancelled]}
    faults |= {"preempted": nodes[preempted], "node died": nodes[dying]}
    for fault, cells in faults.items():
        outcome.hit[fault] = {cell: held[cell][1] for cell in cells}
        watch.note(f"{fault}: {' and '.join(cells)}")
    slurm("scontrol", "update", f"jobid={held[late][0].job}", "TimeLimit=1")
    kill_node(watch, dying)
    slurm("scancel", held[cancelled][0].job)
    urgent = ["--partition=urgent", f"--nodelist={preempted}", "--nodes=1", "--gpus-per-node=2"]
    urgent += ["--account=kd", "--mem=100", "--time=1", "--output=/dev/null", "--wrap=sleep 3"]
    slurm("sbatch", *urgent)
    watch.note("squeue fails eight times in a row, sacct too")
    folder.let_fail("squeue", 8)
    folder.let_fail("sacct", 8)
    lost = [held[cell][0].job for cell in nodes[dying]]
    watch.until(lambda: all(watch.was_requeued(job) for job in lost), f"the end of node {dying}")
    subprocess.run([LAB, "start-node", dying.removeprefix("n")], check=True)
    watch.note(f"node {dying} is back")


def _kill_snakemake(outcome: Outcome) -> None:
    """Its jobs go on and end without it, but for one, which is cancelled."""
    folder, watch = outcome.faulted, outcome.watch
    snakemake = outcome.started[-1]
    process, step = watch.hold([ORPHAN])[ORPHAN]
    watch.until(
        lambda: all(folder.cell(cell, "model.pt").exists() for cell in [*TEACHERS, *BASELINES]),
        "the end of all that was hit",
    )
    watch.note("Snakemake is killed with -9")
    snakemake.kill()
    outcome.codes["killed"] = snakemake.wait()
    outcome.hit["Snakemake killed"] = {ORPHAN: step}
    watch.until(lambda: watch.active() <= {process.job}, "the end of the jobs that nobody watches")
    (name,) = re.findall(r"SLURM run ID: (\S+)", (folder.path / "first.log").read_text())
    watch.note(f"scancel of what it left behind: {ORPHAN}")
    slurm("scancel", f"--name={name}")
    watch.until(lambda: not watch.active(), "its end")


def _finish(outcome: Outcome) -> None:
    """The same command again, to the report."""
    folder, watch = outcome.faulted, outcome.watch
    unlock = folder.snakemake("unlock.log", "--unlock")
    assert unlock.wait(300) == 0
    folder.let_work("sacct")  # nothing but the efficiency report asks it
    folder.let_fail("sbatch", 1)
    watch.note("Snakemake starts again; sbatch fails once")
    outcome.started.append(folder.snakemake("second.log"))
    outcome.codes["second"] = outcome.started[-1].wait(1500)
    watch.note("Snakemake is done")


def kill_node(watch: Watch, node: str) -> None:
    """Everything on a node ends at once, as if its power had failed."""
    jobs = {process.job for process in watch.processes() if process.node == node}
    subprocess.run([LAB, "kill-node", node.removeprefix("n")], check=True)
    steps, inside = [], []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            title = (entry / "cmdline").read_bytes().decode(errors="replace")
            variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        step = re.match(r"slurmstepd: \[(\d+)\.", title)
        if step and step[1] in jobs:
            steps.append(int(entry.name))
        elif any(f"SLURM_JOB_ID={job}" in variables for job in jobs):
            inside.append(int(entry.name))
    for process in steps + inside:  # a step that outlives its job would tell that it failed
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
