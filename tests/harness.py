"""Runs a job's ranks as forked processes on this machine and brings their weights back."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from worker.build import Builder
from worker.data.base import Source
from worker.feed import Feeder
from worker.metrics import Stopwatch
from worker.models.base import Model
from worker.schedule.job import minibatches_per_step
from worker.spec.cluster import ClusterSpec
from worker.spec.job import Job, Placement, Plan
from worker.spec.records import StepMetrics

DEADLINE = 60.0


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
    )
    ranks = [
        Placement(rank=rank, stage=plan.stages_of(rank)[0], host="localhost", device="cpu", threads=1)
        for rank in range(plan.ranks)
    ]
    return Job(run="test", spec=spec, plan=plan, ranks=ranks)


def train(
    job: Job, model: Model, source: Source, folder: Path, prepare: Callable[[], None] | None = None
) -> dict[str, Tensor]:
    """Train ``job`` with a process per rank; all parameters by full name. ``prepare`` runs first in every rank."""
    processes = [_fork(rank, job, model, source, folder, prepare) for rank in range(len(job.ranks))]
    try:
        statuses = _wait(processes)
    finally:
        for pid in processes:
            _kill(pid)
    assert not any(statuses), f"ranks ended with {statuses}:\n" + "".join(p.read_text() for p in folder.glob("error-*"))
    weights: dict[str, Tensor] = {}
    for rank in range(len(job.ranks)):
        for name, weight in torch.load(folder / f"weights-{rank}.pt", weights_only=True).items():
            assert torch.equal(weights.setdefault(name, weight), weight), f"replicas of {name} differ"
    return weights


def _fork(rank: int, job: Job, model: Model, source: Source, folder: Path, prepare: Callable[[], None] | None) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        if prepare:
            prepare()
        torch.save(_rank(rank, job, model, source, folder), folder / f"weights-{rank}.pt")
        status = 0
    except BaseException:
        (folder / f"error-{rank}").write_text(f"rank {rank}: {traceback.format_exc()}\n")
    finally:
        os._exit(status)


def _rank(rank: int, job: Job, model: Model, source: Source, folder: Path) -> dict[str, Tensor]:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(str(folder / "store"), len(job.ranks))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=len(job.ranks))
    waiting = Stopwatch()
    builder = Builder(job, model, source.signature, rank, torch.device("cpu"))
    feed = (
        Feeder(source, minibatches_per_step(job.spec), builder.device, waiting) if job.ranks[rank].stage == 0 else None
    )
    executor = builder.executor(feed, waiting, _ignore)
    executor.run(builder.actions())
    dist.barrier()
    return {name: parameter.detach().clone() for name, parameter in executor.parameters().items()}


def _ignore(step: StepMetrics) -> None:
    """No test here looks at metrics."""


def _wait(processes: list[int]) -> list[int]:
    deadline, statuses = time.monotonic() + DEADLINE, dict.fromkeys(processes, None)
    while None in statuses.values():
        assert time.monotonic() < deadline, f"ranks did not end within {DEADLINE} s: {statuses}"
        for pid in [pid for pid, status in statuses.items() if status is None]:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                statuses[pid] = status
        time.sleep(0.005)
    return [status for status in statuses.values() if status is not None]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
