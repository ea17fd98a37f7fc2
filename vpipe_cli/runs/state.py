"""What became of a run: its state from its events and its lock, and the document that ``vpipe status`` prints."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from vpipe_cli.engines import ENGINES
from vpipe_cli.runs.metrics import last_step
from vpipe_cli.runs.store import Run
from worker.spec.files import read_events
from worker.spec.records import FINAL, State

LEFT = 75
"""Exit status of a rank that has saved and left because its allocation ends; the run goes on in another one."""
PLANNING_LIMIT = 60.0  # seconds a launch may take before its hostd begins; one that took longer was interrupted

END_MARGIN = 15.0  # beyond the grace, for what hostd does when even SIGKILL does not help
EXIT_CODES: dict[State, int] = {"succeeded": 0, "failed": 100, "lost": 100, "stopped": 103}
"""What a command that waited for a run's end exits with."""


@dataclass(frozen=True)
class Standing:
    """Where a run stands."""

    state: State
    attempt: int
    first_failure: dict[str, Any] | None = None


def standing(run: Run) -> Standing:
    """Where the run stands now.

    One that ended without a final word, as when the machine went down, is lost. One whose machines do not answer is
    unknown until they do: unreachable is not failed.
    """
    said = _said(run)
    if said.state in FINAL:
        return said
    alive = _engine_says_alive(run)
    said = _said(run)  # what is new has come, and the run may have ended between the two looks
    starting_soon = said.state == "planning" and time.time() - run.started < PLANNING_LIMIT
    if said.state in FINAL or alive or starting_soon:
        return said
    return Standing("unknown" if alive is None else "lost", said.attempt)


def wait_for_end(run: Run, seconds: float) -> Standing:
    """Where the run stands once it has ended, or after that many seconds."""
    deadline = time.monotonic() + seconds
    while (now := standing(run)).state not in FINAL and time.monotonic() < deadline:
        time.sleep(0.1)
    return now


def end_limit(run: Run) -> float:
    """Seconds in which a run that was asked to stop ends, whatever its ranks do."""
    grace = _json(run.files.launch).get("grace")
    return END_MARGIN + (grace if isinstance(grace, (int, float)) else 0.0)


def queue_text(run: Run) -> str:
    """What Slurm last said of the run's job, in one line; empty for a run that is no job of Slurm."""
    found = _json(run.files.queue)
    if not found:
        return ""
    begins = "expected" if found["state"] == "PENDING" else "since"
    parts = [f"job {found['job']} {found['state']}", found["reason"] and f"reason {found['reason']}"]
    parts += [found["start"] and f"{begins} {found['start']}", found["nodes"] and f"nodes {found['nodes']}"]
    return ", ".join(filter(None, parts))


def _engine_says_alive(run: Run) -> bool | None:
    engine = ENGINES.get(run.engine)
    if engine is None:
        return False
    engine.refresh(run)
    return engine.alive(run)


def _said(run: Run) -> Standing:
    """The last state that the events name; a final one is never left."""
    last = Standing("planning", 1)
    for event in read_events(run.files.events):
        if event.get("event") == "state" and event.get("state") in get_args(State):
            last = Standing(event["state"], event.get("attempt", 1), event.get("first_failure"))
        if last.state in FINAL:
            break
    return last


def status(run: Run) -> dict[str, Any]:
    """The run as one document: what ``vpipe status -o json`` prints."""
    now = standing(run)
    job = _json(run.files.job)
    ranks = _json(run.files.launch).get("ranks") or job.get("ranks") or []
    newest = last_step(run.files.metrics(max(ranks, key=lambda rank: rank["stage"])["rank"])) if ranks else None
    return {
        "schema": 1,
        "run": run.id,
        "name": run.name,
        "state": now.state,
        "attempt": now.attempt,
        "step": newest.step if newest else 0,
        "steps": job["spec"]["run"]["steps"] if job else 0,
        "first_failure": _with_step(run, now.first_failure),
        "ranks": [_rank(run, now, rank) for rank in ranks],
        "result": _json(run.files.result) or None,
        "queue": None if now.state in FINAL else _json(run.files.queue) or None,
    }


def _with_step(run: Run, failure: dict[str, Any] | None) -> dict[str, Any] | None:
    """The first failure; a rank that could not say at which step it ended was last seen where its metrics end."""
    if failure is None or failure["step"] is not None:
        return failure
    newest = last_step(run.files.metrics(failure["rank"]))
    return {**failure, "step": newest.step if newest else None}


def _rank(run: Run, now: Standing, rank: dict[str, Any]) -> dict[str, Any]:
    end = _json(run.files.exit(now.attempt, rank["rank"]))
    place = {key: rank[key] for key in ("rank", "stage", "host", "device")}
    return {**place, "state": _rank_state(run, now, rank["rank"], end), "exit": _short(end) if end else None}


def _rank_state(run: Run, now: Standing, rank: int, end: dict[str, Any]) -> State:
    if end:
        return "stopped" if end["ended_by_us"] or end["code"] == LEFT else "succeeded" if end["code"] == 0 else "failed"
    if now.state in FINAL:
        return "lost"
    return "running" if run.files.ready(now.attempt, rank).exists() else "starting"


def _short(end: dict[str, Any]) -> dict[str, Any]:
    return {key: end[key] for key in ("code", "signal", "cause")}


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is none, or none that is whole."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
