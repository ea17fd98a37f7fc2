"""How a run stands, with all that a person wants to read of it: numbers, the first failure, the last lines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vpipe_cli.runs import logs
from vpipe_cli.runs.job import placed_job
from vpipe_cli.runs.metrics import last_step
from vpipe_cli.runs.state import queue_text, status
from vpipe_cli.runs.store import Run
from worker.errors import NotFinished
from worker.spec.records import RankExit, Result, State, StepMetrics

LAST_LINES = 30


@dataclass(frozen=True)
class RankLine:
    """One rank as ``vpipe status`` lists it; ``cause`` says how it ended."""

    rank: int
    stage: int
    host: str
    device: str
    state: State
    cause: str


@dataclass(frozen=True)
class Failure:
    """Who failed first. ``step`` is None where not even the run had made one."""

    rank: int
    stage: int
    host: str
    cause: str
    step: int | None
    last_lines: list[str]
    log: Path


@dataclass(frozen=True)
class Outcome:
    """A run at one moment, its end included."""

    run: str
    state: State
    step: int
    steps: int
    loss: float | None
    started: float
    folder: Path
    ranks: list[RankLine]
    failure: Failure | None
    result: Result | None
    queue: str = ""

    @property
    def hostd_log(self) -> Path:
        """Where to look when there is nothing else."""
        return self.folder / "hostd.log"


def outcome(run: Run) -> Outcome:
    """How the run stands now."""
    document = status(run)
    ranks = [_rank_line(rank) for rank in document["ranks"]]
    result = _result(run) if document["state"] == "succeeded" else None
    newest = _newest(run)
    first = document["first_failure"]
    return Outcome(
        run=run.id,
        state=document["state"],
        step=document["step"],
        steps=document["steps"],
        loss=result.loss if result else newest.loss if newest else None,
        started=run.started,
        folder=run.folder,
        ranks=ranks,
        failure=_failure(run, document["attempt"], first, document["step"]) if first else None,
        result=result,
        queue=queue_text(run) if document["queue"] else "",
    )


def _newest(run: Run) -> StepMetrics | None:
    try:
        return last_step(run.files.metrics(placed_job(run).loss_rank))
    except NotFinished:
        return None


def _rank_line(rank: dict[str, Any]) -> RankLine:
    cause = rank["exit"]["cause"] if rank["exit"] else ""
    return RankLine(rank["rank"], rank["stage"], rank["host"], rank["device"], rank["state"], cause)


def _failure(run: Run, attempt: int, first: dict[str, Any], step: int) -> Failure:
    path = run.files.exit(attempt, first["rank"])
    try:
        last_lines = RankExit.model_validate_json(path.read_bytes()).last_lines
    except (OSError, ValidationError):
        last_lines = _from_log(run, attempt, first["rank"])
    place = {key: first[key] for key in ("rank", "stage", "host", "cause")}
    at = first["step"] if first["step"] is not None else step or None
    return Failure(**place, step=at, last_lines=last_lines[-LAST_LINES:], log=run.files.log(attempt, first["rank"]))


def _from_log(run: Run, attempt: int, rank: int) -> list[str]:
    try:
        chosen = [source for source in logs.sources(run.files, placed_job(run), attempt) if source.rank == rank]
    except NotFinished:
        return []
    return logs.texts(logs.last(chosen, {}, LAST_LINES, rest=True))


def _result(run: Run) -> Result | None:
    try:
        return Result.model_validate_json(run.files.result.read_bytes())
    except (OSError, ValidationError):
        return None
