"""What the jobs of each stage ask a machine or a cluster for. Nothing here changes a result."""

from __future__ import annotations

from pydantic import Field

from kdpipe.schema import Strict


class JobResources(Strict):
    """What one job of a stage asks for; memory and time grow with each attempt."""

    mem_mb: int = Field(1000, ge=1)
    runtime: int = Field(10, ge=1, description="minutes")
    retries: int = Field(0, ge=0)


class ParallelResources(JobResources):
    """Of a stage that uses several threads or processes."""

    threads: int = Field(1, ge=1)


class NetworkResources(ParallelResources):
    """Of a stage that runs a network."""

    threads: int = Field(2, ge=1)
    mem_mb: int = Field(6000, ge=1)
    gpu: int = Field(0, ge=0)


class TrainingResources(NetworkResources):
    """Of a training; none of these changes its result."""

    runtime: int = Field(720, ge=1, description="minutes")
    retries: int = Field(2, ge=0, description="each goes on from the checkpoint")
    checkpoint_seconds: int = Field(60, ge=0, description="0: after every step")
    loaders: int = Field(0, ge=0, description="processes that load data; 0 on a CPU")


class Resources(Strict):
    """Resources by stage; ``light`` is for fetch, split, tables and settings."""

    light: JobResources = JobResources()
    prepare: ParallelResources = ParallelResources(threads=2, mem_mb=4000, runtime=120)
    train: TrainingResources = TrainingResources()
    profile: NetworkResources = NetworkResources(threads=1, runtime=30)
    predict: NetworkResources = NetworkResources(runtime=120, retries=1)
    evaluate: ParallelResources = ParallelResources(mem_mb=3000, runtime=60)
