"""Every number that the ranks of a run measured, as (time, step, tag, value): for programs that draw curves."""

from __future__ import annotations

from collections.abc import Iterator

from vpipe_cli.runs.job import placed_job
from vpipe_cli.runs.metrics import parse
from vpipe_cli.runs.store import Run
from vpipe_cli.runs.tensorboard import Scalar
from worker import logfilter
from worker.spec.records import StepMetrics

OF_RUN = ("loss", "lr", "grad_norm")
OF_STAGE = ("forward", "backward", "update", "wait", "memory")


def scalars(run: Run) -> Iterator[Scalar]:
    """Rank by rank, in the order of steps; what a resumed run did again comes again. Raises NotFinished."""
    job = placed_job(run)
    last = job.loss_rank
    for rank in job.ranks:
        for _, line in logfilter.forward(str(run.files.metrics(rank.rank)), 0):
            if step := parse(line):
                yield from _of(step, rank.rank, rank.rank == last)


def _of(step: StepMetrics, rank: int, is_last: bool) -> Iterator[Scalar]:
    if is_last:
        for name in OF_RUN:
            if (value := getattr(step, name)) is not None:
                yield step.time, step.step, name, float(value)
        if step.step > 1 and step.seconds:
            yield step.time, step.step, "samples_per_second", step.samples / step.seconds
    for name in OF_STAGE:
        yield step.time, step.step, f"rank-{rank}/{name}", float(getattr(step, name))
