"""The parts of recovery put together for one rank of a job."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

import torch

from worker import __version__
from worker.build import Builder
from worker.checkpoint import changes
from worker.checkpoint.manifest import Manifest, RankEntry
from worker.executor import Executor
from worker.recovery.commit import Commit
from worker.recovery.place import Place
from worker.recovery.restore import Saved
from worker.recovery.saver import Saver
from worker.recovery.snapshot import Camera
from worker.rendezvous import Rendezvous
from worker.schedule.job import minibatches_per_step
from worker.spec.files import RunFiles, append_event
from worker.spec.job import Job, code_digest


def say(text: str) -> None:
    """One line in this rank's log."""
    print(text, flush=True)


def saver(
    builder: Builder,
    executor: Executor,
    attempt: int,
    place: Place,
    rendezvous: Rendezvous,
    data_offset: int,
    say: Callable[[str], None] = say,
) -> Saver | None:
    """What saves this rank, and says so on rank 0; None where the job wants no checkpoints."""
    job, rank = builder.job, builder.rank
    spec = job.spec.checkpoint
    if spec.every_steps is None:
        return None
    camera = Camera(executor, rank, job.plan.ranks_of(job.ranks[rank].stage), builder.device)
    per_step = minibatches_per_step(job.spec)
    commit = Commit(rendezvous.store, place, _head(job, attempt), per_step, data_offset, spec)
    return Saver(spec, job.spec.run.steps, attempt, place, camera, commit, say)


def _head(job: Job, attempt: int) -> Manifest:
    """The part of a manifest that is the same at every step."""
    return Manifest(
        run=job.run,
        attempt=attempt,
        step=0,
        data_position=0,
        time=time.time(),
        spec=job.spec.model_dump(mode="json"),
        plan=job.plan.model_dump(mode="json"),
        job_digest=job.digest(),
        code_digest=code_digest(),
        versions={"vpipe": __version__, "torch": torch.__version__, "python": platform.python_version()},
        files={},
        layers={},
        parameters={},
        optimizer_values={},
        ranks={str(each.rank): RankEntry(stage=each.stage, host=each.host) for each in job.ranks},
    )


def record(saved: Saved, job: Job, attempt: int, files: RunFiles) -> None:
    """Say where the run goes on, in the log and among its events, and what will be another than it was."""
    found = saved.manifest
    differs = changes.changes(found, job.spec, job.plan, code_digest())
    source = "" if found.run == job.run else f" of run {found.run}"
    how = ", with differences:" if differs else ", bit for bit"
    say(f"goes on from checkpoint step-{found.step}{source}{how}")
    for line in differs:
        say(f"  {line}")
    append_event(
        files.events,
        {
            "time": time.time(),
            "event": "resumed",
            "attempt": attempt,
            "run": found.run,
            "step": found.step,
            "changes": differs,
        },
    )
