"""Run folders written with the worker's own records: what a run of two ranks leaves, whole or half way."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vpipe_cli.runs.store import Run
from worker.spec.cluster import ClusterSpec
from worker.spec.files import RunFiles, append_event, write_atomic
from worker.spec.job import Job, Placement, Plan
from worker.spec.records import RankExit, Result, StageResult, StepMetrics

BEGIN = 1_795_438_140.0  # 2026-11-23T12:49:00Z


def job(run: str = "bert-1", ranks: int = 2, steps: int = 20) -> Job:
    """A job of one rank a stage on this machine."""
    spec = ClusterSpec.model_validate({"name": "bert", "machines": [f"cpu*{ranks}"], "run": {"steps": steps}})
    plan = Plan(partition=[max(1, 10 // ranks)] * ranks, recompute_ratio=[0.0] * ranks, reason="by hand")
    placed = [Placement(rank=rank, stage=rank, host="localhost", device="cpu", threads=1) for rank in range(ranks)]
    return Job(run=run, spec=spec, plan=plan, ranks=placed)


def make_run(home: Path, ranks: int = 2, steps: int = 20, number: int = 1) -> RunFiles:
    """A run of this home that was started and has done nothing yet. It needs ``alive`` not to be taken for lost."""
    files = RunFiles(home / "runs" / f"bert-20261123-124900-{number:04x}")
    for inside in (files.attempt(1), files.metrics(0).parent):
        inside.mkdir(parents=True)
    made = job(files.folder.name, ranks, steps)
    launch = {"grace": 1.0, "ranks": [rank.model_dump() for rank in made.ranks]}
    write_json(files.launch, launch)
    write_atomic(files.job, made.model_dump_json())
    state(files, "planning", cwd=str(home), engine="local")
    state(files, "starting")
    return files


def run(files: RunFiles) -> Run:
    """The run as the store would find it."""
    return Run(files.folder.name, files.folder, BEGIN, "", "local")


@contextmanager
def alive(files: RunFiles) -> Iterator[None]:
    """Hold the run's lock, as hostd and its ranks do."""
    with files.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def state(files: RunFiles, name: str, **more: Any) -> None:
    """Enter a state."""
    append_event(files.events, {"time": BEGIN, "event": "state", "attempt": 1, "state": name, **more})


def stamp(seconds: float) -> str:
    """A log's stamp, ``seconds`` after the beginning; below an hour."""
    minutes, rest = divmod(seconds, 60)
    return f"2026-11-23T{12 + (49 + int(minutes)) // 60:02d}:{(49 + int(minutes)) % 60:02d}:{rest:09.6f}Z"


def log(files: RunFiles, rank: int, at: float, text: str | bytes, stream: str = "o") -> None:
    """Append one record to a rank's log."""
    raw = text if isinstance(text, bytes) else text.encode()
    with files.log(1, rank).open("ab") as file:
        file.write(f"{stamp(at)} {stream} ".encode() + raw + b"\n")


def step_metrics(rank: int, step: int, last_rank: int) -> StepMetrics:
    """One step of 0.1 s: rank 0 is busy for 80 ms of it, the others for 60."""
    return StepMetrics(
        step=step,
        time=BEGIN + 0.1 * step,
        samples=8,
        minibatches=1,
        loss=7.0 - 0.1 * step if rank == last_rank else None,
        lr=1e-3,
        forward=0.02,
        backward=0.05 if rank == 0 else 0.03,
        update=0.01,
        wait=0.015,
        seconds=0.1,
        memory=(400 + rank) << 20,
        in_flight=last_rank + 1 - rank,
        versions=last_rank + 1 - rank,
    )


def add_steps(files: RunFiles, first: int, last: int, ranks: int = 2) -> None:
    """Append the metrics of steps ``first`` to ``last`` of every rank."""
    for rank in range(ranks):
        with files.metrics(rank).open("a") as file:
            for step in range(first, last + 1):
                file.write(step_metrics(rank, step, ranks - 1).line() + "\n")


def add_exit(files: RunFiles, rank: int, **more: Any) -> RankExit:
    """Write how a rank ended; well, unless ``more`` says otherwise."""
    given = {"code": 0, "signal": None, "ended_by_us": False, "cause": "finished", **more}
    given |= {"rank": rank, "stage": rank, "host": "localhost", "device": "cpu"}
    record = RankExit.model_validate({"pid": 100 + rank, "started": BEGIN, "ended": BEGIN + 9, **given})
    write_atomic(files.exit(1, rank), record.model_dump_json())
    return record


def result(ranks: int = 2, steps: int = 20) -> Result:
    """What such a run ends with."""
    stages = [
        StageResult(stage=rank, rank=rank, layers=5, stage_seconds=0.08, idle_share=0.2, peak_memory_bytes=400 << 20)
        for rank in range(ranks)
    ]
    numbers = {"loss": 5.25, "baseline_loss": 7.41, "samples_per_second": 80.0, "steps": steps, "seconds": 2.0}
    return Result.model_validate({**numbers, "stages": stages, "weights_sha256": "a1" * 32})


def succeed(files: RunFiles, ranks: int = 2, steps: int = 20) -> None:
    """The rest of a run that ends well."""
    state(files, "running")
    add_steps(files, 1, steps, ranks)
    for rank in range(ranks):
        add_exit(files, rank)
    write_atomic(files.result, result(ranks, steps).model_dump_json())
    state(files, "succeeded")


def fail(files: RunFiles, steps: int = 11) -> None:
    """The rest of a run of two ranks whose rank 1 was killed."""
    state(files, "running")
    add_steps(files, 1, steps)
    log(files, 1, 2.0, "the last thing it said")
    cause = "killed by SIGKILL (out of memory, or kill -9)"
    add_exit(files, 1, code=None, signal=9, cause=cause, last_lines=["the last thing it said"])
    lost = "exit status 100: the connection to rank 1 is gone"
    add_exit(files, 0, code=100, cause=lost, consequence=True, last_lines=["PeerLost"])
    first = {"rank": 1, "stage": 1, "host": "localhost", "cause": cause, "step": None}
    state(files, "failed", why="after rank 1 failed", first_failure=first)


def write_json(path: Path, value: Any) -> None:
    """A JSON file as a rank writes one."""
    write_atomic(path, json.dumps(value))
