"""Runs a job's ranks as forked processes on this machine and brings their weights back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from tests import ranks
from worker.build import Builder
from worker.communication import Communicator
from worker.data.base import Source
from worker.feed import Feeder
from worker.models.base import Model
from worker.schedule.job import minibatches_per_step
from worker.spec.cluster import ClusterSpec
from worker.spec.job import Job, Placement, Plan
from worker.spec.records import StepMetrics
from worker.trace import Stopwatch


def job_of(
    spec: ClusterSpec,
    partition: list[int],
    recompute_ratio: float = 0.0,
    replicas: list[int] | None = None,
    chunks: int = 1,
) -> Job:
    """A job on CPU slots of this machine, one thread a rank."""
    stages = len(partition)
    plan = Plan(
        partition=partition,
        recompute_ratio=[recompute_ratio] * stages,
        reason="a test",
        replicas=replicas or [1] * stages,
        chunks=chunks,
        folds=spec.pipeline.schedule == "zb-v",
    )
    placements = [
        Placement(rank=rank, stage=plan.stages_of(rank)[0], host="localhost", device="cpu", threads=1)
        for rank in range(plan.ranks)
    ]
    return Job(run="test", spec=spec, plan=plan, ranks=placements)


def train(
    job: Job, model: Model, source: Source, folder: Path, prepare: Callable[[], None] | None = None
) -> dict[str, Tensor]:
    """Train ``job`` with a process per rank; all parameters by full name. ``prepare`` runs first in every rank."""
    outcomes = ranks.run(len(job.ranks), folder, partial(_rank, job, model, source, folder, prepare))
    weights: dict[str, Tensor] = {}
    for outcome in outcomes:
        for name, weight in outcome.items():
            assert torch.equal(weights.setdefault(name, weight), weight), f"replicas of {name} differ"
    return weights


def failures(
    job: Job, model: Model, source: Source, folder: Path, prepare: Callable[[], None] | None = None
) -> list[BaseException]:
    """Train ``job`` as ``train`` does, expecting every rank to fail; their errors."""
    outcomes = ranks.attempt(len(job.ranks), folder, partial(_rank, job, model, source, folder, prepare))
    assert all(isinstance(outcome, ranks.Failure) for outcome in outcomes), outcomes
    return [outcome.error for outcome in outcomes]


def _rank(
    job: Job, model: Model, source: Source, folder: Path, prepare: Callable[[], None] | None, rank: int
) -> dict[str, Tensor]:
    ranks.join(rank, len(job.ranks), folder, job.spec.run.stall_timeout)
    if prepare:
        prepare()
    waiting = Stopwatch()
    builder = Builder(job, model, source.signature, rank, torch.device("cpu"))
    feed = (
        Feeder(source, minibatches_per_step(job.spec), builder.device, waiting) if job.ranks[rank].stage == 0 else None
    )
    executor = builder.executor(feed, waiting, _ignore)
    executor.run(builder.actions())
    dist.barrier()
    return {name: parameter.detach().clone() for name, parameter in executor.parameters().items()}


def make_far() -> None:
    """From now on this process shares no memory with other ranks, as if each were on a machine of its own."""
    Communicator.connect = lambda self: None  # type: ignore[method-assign]


def _ignore(step: StepMetrics) -> None:
    """No test here looks at metrics."""
