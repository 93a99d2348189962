"""Which trainings may be one cohort: those that see the same batches and have one teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdpipe.engine import parallel
from kdpipe.engine.jobs import Job
from kdpipe.errors import ConfigError

#: settings of a training that members may have different; all others decide the batches, what the
#: teacher gives for them, or how long a training takes
OWN_SETTINGS = {
    "segmentation_loss",
    "optimizer",
    "learning_rate",
    "final_learning_rate",
    "momentum",
    "nesterov",
    "weight_decay",
    "schedule",
    "gradient_clip",
    "ema_decay",
    "validate_every",
    "validation_overlap",
}


def check_fit(jobs: Sequence[Job]) -> None:
    """Raise ConfigError unless all members see the same batches and learn from one teacher."""
    if parallel.started_together():
        raise ConfigError("a cohort is trained in one process: start it without torchrun")
    first = _common(jobs[0])
    for job in jobs[1:]:
        different = [key for key, value in _common(job).items() if value != first[key]]
        if different:
            raise ConfigError(
                f"{job.state.parent} cannot be in a cohort with {jobs[0].state.parent}: their "
                f"{', '.join(different)} differ; train it alone"
            )
    if len({job.teacher.resolve() for job in jobs if job.teacher}) > 1:
        raise ConfigError("a cohort has one teacher; train the students of each by themselves")
    if len({job.state.resolve() for job in jobs}) < len(jobs):
        raise ConfigError("a member stands twice in a cohort; name each once")


def _common(job: Job) -> dict[str, Any]:
    """What decides the batches, what the teacher gives for them, and how long it takes."""
    run = job.run
    return {
        "seed": run["cell"]["seed"],
        "patch": run["patch"],
        "targets": run["targets"],
        "channels": run["network"]["in_channels"],
        **{key: value for key, value in run["training"].items() if key not in OWN_SETTINGS},
        "split": job.split,
        "preparation": job.preparation,
        "store": job.store.resolve(),
    }
