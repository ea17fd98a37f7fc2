"""What the metrics say a rank holds is what its Actions make it hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests import harness, ranks, toy
from worker.build import Builder
from worker.feed import Feeder
from worker.schedule.job import minibatches_per_step, rank_actions
from worker.schedule.versions import peak_in_flight, peak_versions
from worker.spec.cluster import ClusterSpec, PipelineSpec, RunSpec
from worker.spec.job import Job
from worker.spec.records import StepMetrics
from worker.trace import Stopwatch

RANKS = 3


def steps(job: Job, folder: Path, rank: int) -> list[StepMetrics]:
    """What one rank measures of a whole run."""
    ranks.join(rank, RANKS, folder)
    waiting, source, found = Stopwatch(), toy.Data(), list[StepMetrics]()
    builder = Builder(job, toy.model(), source.signature, rank, torch.device("cpu"))
    feed = Feeder(source, minibatches_per_step(job.spec), builder.device, waiting) if rank == 0 else None
    builder.executor(feed, waiting, found.append).run(builder.actions())
    dist.barrier()
    return found


@pytest.mark.parametrize(("sync_mode", "per_step"), [("asp", None), ("bsp", 5)])
def test_what_is_in_flight_and_the_versions_held_are_the_schedule_s(
    sync_mode: str, per_step: int | None, tmp_path: Path
) -> None:
    spec = ClusterSpec(
        machines=["cpu*3"],
        pipeline=PipelineSpec(sync_mode=sync_mode, minibatches_per_step=per_step),
        run=RunSpec(steps=12, stall_timeout=20.0),
    )
    job = harness.job_of(spec, [2, 2, 2])
    for rank, found in enumerate(ranks.run(RANKS, tmp_path, lambda rank: steps(job, tmp_path, rank))):
        actions = list(rank_actions(spec, job.plan, rank))
        assert max(step.in_flight for step in found) == peak_in_flight(actions) == RANKS - rank
        assert max(step.versions for step in found) == peak_versions(actions)
