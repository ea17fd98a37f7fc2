"""One look at a run: how it stands, its numbers, and what its ranks do at this moment, as a Frame to draw."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vpipe_cli.render.live import Frame
from vpipe_cli.runs.metrics import Meter, RankProgress
from vpipe_cli.runs.state import Standing
from vpipe_cli.runs.store import Run
from vpipe_cli.sanitize import clean
from worker.spec.files import RunFiles, read_events
from worker.spec.job import Job
from worker.spec.records import FINAL


class Looker:
    """Looks at a run again and again. All it knows comes from the run's files."""

    def __init__(self, run: Run, job: Job) -> None:
        self._run, self._job = run, job
        self._meter = Meter(run.files, job)

    def frame(self, now: Standing, notice: str = "", hint: str = "") -> Frame:
        """The run, of which ``now`` was read before."""
        self._meter.update()
        at = _end_of(self._run) if now.state in FINAL else time.time()
        ranks = [] if now.state in FINAL else self._job.ranks
        said = {rank.rank: doing(self._run.files, now.attempt, rank.rank) for rank in ranks}
        return Frame(
            run=self._run.id,
            state=now.state,
            attempt=now.attempt,
            seconds=at - self._run.started,
            now=at,
            progress=self._meter.progress(),
            notice=notice,
            hint=hint,
            doing={rank: text for rank, text in said.items() if text},
        )


def doing(files: RunFiles, attempt: int, rank: int) -> str:
    """What a rank of this machine does now, or waits for, in its own words; empty where it says nothing here."""
    try:
        record = files.progress(attempt, rank).read_bytes().split(b"\0", 1)[0].decode("utf-8", "replace")
    except OSError:
        return ""
    fields = record.split("\t")
    if len(fields) != 5:
        return ""
    return clean(f"waits for {fields[3]}" if fields[3] else fields[2])


def document(frame: Frame) -> dict[str, Any]:
    """The same for programs: what ``vpipe top -o json`` prints."""
    progress = frame.progress
    numbers = ("step", "steps", "loss", "baseline_loss", "samples_per_second", "step_seconds", "eta")
    return {
        "schema": 1,
        "run": frame.run,
        "state": frame.state,
        "attempt": frame.attempt,
        "seconds": frame.seconds,
        **{name: getattr(progress, name) for name in numbers},
        "ranks": [_rank(rank, frame.doing) for rank in progress.ranks],
    }


def _rank(rank: RankProgress, doing: Mapping[int, str]) -> dict[str, Any]:
    placed = rank.placement
    return {
        "rank": placed.rank,
        "stages": rank.stages,
        "layers": [[these[0], these[-1]] for these in rank.layers],
        "host": placed.host,
        "device": placed.device,
        "timing": None if rank.timing is None else asdict(rank.timing),
        "slow": rank.slow,
        "doing": doing.get(placed.rank, ""),
    }


def _end_of(run: Run) -> float:
    times = [event["time"] for event in read_events(run.files.events) if isinstance(event.get("time"), float)]
    return max(times, default=time.time())
