"""What jobs ask a machine or a cluster for, and what there is. Nothing here changes a result."""

from __future__ import annotations

import os

from pydantic import Field

from kdpipe.schema import Strict


class JobResources(Strict):
    """What one job of a stage asks for; memory and time grow with each attempt."""

    mem_mb: int = Field(1000, ge=1)
    runtime: int = Field(10, ge=1, description="minutes")
    retries: int | None = Field(
        None, ge=0, description="null: as many as Snakemake is told (--retries, or its profile)"
    )


class ParallelResources(JobResources):
    """Of a stage that uses several threads or processes."""

    threads: int = Field(1, ge=1)


class NetworkResources(ParallelResources):
    """Of a stage that runs a network."""

    threads: int = Field(2, ge=1)
    mem_mb: int = Field(6000, ge=1)
    gpu: int = Field(0, ge=0, description="a training on several has a process on each")


class TrainingResources(NetworkResources):
    """Of a training; none changes its result, several GPUs only the rounding."""

    runtime: int = Field(720, ge=1, description="minutes")
    retries: int | None = Field(2, ge=0, description="each goes on from the checkpoint")
    checkpoint_seconds: int = Field(60, ge=0, description="0: after every step")
    loaders: int = Field(0, ge=0, description="processes that load data; 0 on a CPU")

    def of_cohort(self, members: int) -> tuple[int, int]:
        """Return memory (MB) and time (minutes) of several students in one job.

        They hold one batch and one set of activations in memory, and each its weights.
        """
        more = members - 1
        return self.mem_mb + more * self.mem_mb // 10, self.runtime + more * self.runtime * 3 // 4


class PrepareResources(ParallelResources):
    """Of a preparation."""

    threads: int = Field(2, ge=1)
    mem_mb: int = Field(4000, ge=1)
    runtime: int = Field(120, ge=1, description="minutes")


class ProfileResources(NetworkResources):
    """Of measuring what a network costs."""

    threads: int = Field(1, ge=1)
    runtime: int = Field(30, ge=1, description="minutes")


class PredictResources(NetworkResources):
    """Of segmenting the test cases."""

    runtime: int = Field(120, ge=1, description="minutes")
    retries: int | None = Field(1, ge=0)


class ExportResources(ParallelResources):
    """Of writing a network in other forms and holding each against the original, on the CPU."""

    threads: int = Field(2, ge=1)
    mem_mb: int = Field(6000, ge=1)
    runtime: int = Field(60, ge=1, description="minutes")
    retries: int | None = Field(1, ge=0)


class EvaluateResources(ParallelResources):
    """Of scoring the predictions of a cell."""

    mem_mb: int = Field(3000, ge=1)
    runtime: int = Field(60, ge=1, description="minutes")


class Resources(Strict):
    """Resources by stage; ``light`` is for fetch, split, tables and settings."""

    jobs_per_gpu: int = Field(
        1, ge=1, description="jobs that may share a GPU, on a machine without a scheduler"
    )
    light: JobResources = JobResources()
    prepare: PrepareResources = PrepareResources()
    train: TrainingResources = TrainingResources()
    profile: ProfileResources = ProfileResources()
    predict: PredictResources = PredictResources()
    evaluate: EvaluateResources = EvaluateResources()
    export: ExportResources = ExportResources()


def memory_of_machine() -> int:
    """Return the bytes of memory that this machine has in all."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
