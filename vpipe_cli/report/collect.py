"""Everything a report shows of one run, read from its folder, as JSON-able values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from vpipe_cli.report import spans
from vpipe_cli.report.steps import POINTS, Steps
from vpipe_cli.runs import logs
from vpipe_cli.runs.job import placed_job
from vpipe_cli.runs.metrics import baseline_loss, steps_of
from vpipe_cli.runs.outcome import outcome
from vpipe_cli.runs.store import Run
from vpipe_cli.sanitize import clean
from worker.errors import NotFinished
from worker.spec.files import read_events
from worker.spec.job import Job

LOG_LINES = 60
"""Last lines of the log that are shown, of all ranks together."""


def collect(run: Run) -> dict[str, Any]:
    """The run as it stands now; what is not there yet is left empty."""
    stands = outcome(run)
    data: dict[str, Any] = {
        "id": run.id,
        "state": stands.state,
        "started": run.started,
        "step": stands.step,
        "steps": stands.steps,
        "loss": stands.loss,
        "folder": str(run.folder),
        "result": stands.result.model_dump() if stands.result else None,
        "failure": None,
        "events": [_event(event) for event in read_events(run.files.events) if event.get("event") != "rank-start"],
        "config": _text(run),
    }
    if failure := stands.failure:
        data["failure"] = {**vars(failure), "log": str(failure.log), "last_lines": [*map(clean, failure.last_lines)]}
    try:
        job = placed_job(run)
    except NotFinished:
        return data
    return {
        **data,
        **numbers(run, job),
        "plan": _plan(run, job),
        "ranks": [vars(rank) for rank in stands.ranks],
        "baseline": baseline_loss(run.files),
        "timeline": spans.newest(run, job),
        "log": _log(run, job, data["events"]),
    }


def numbers(run: Run, job: Job, points: int = POINTS) -> dict[str, Any]:
    """What the ranks of a run measured: curves of at most ``points``, and of each rank where its time went."""
    ranks = [Steps(steps_of(run.files.metrics(rank.rank))) for rank in job.ranks]
    last = ranks[job.loss_rank]
    return {
        "losses": last.losses(points),
        "throughput": last.throughput(points),
        "stages": [_stage(job, rank, steps) for rank, steps in enumerate(ranks)],
    }


def _plan(run: Run, job: Job) -> dict[str, Any]:
    """The plan with whatever was predicted, which plans made by hand have not."""
    plan = job.plan.model_dump()
    with suppress(OSError, ValueError):
        plan = {**plan, **json.loads(run.files.plan.read_bytes())}
    pipeline, data = job.spec.pipeline, job.spec.data
    chosen = {"sync_mode": pipeline.sync_mode, "schedule": pipeline.schedule, "precision": job.spec.precision}
    return {**plan, **chosen, "minibatch_size": data.minibatch_size, "model": getattr(job.spec.model, "name", "entry")}


def _stage(job: Job, rank: int, steps: Steps) -> dict[str, Any]:
    placement = job.ranks[rank]
    layers = [sum(job.plan.partition[:stage]) for stage in job.plan.stages_of(rank)]
    place = {"rank": rank, "stage": placement.stage, "host": placement.host, "device": placement.device}
    return {**place, "first_layers": layers, **steps.shares()}


def _event(event: dict[str, Any]) -> dict[str, Any]:
    """One event of the run, its text safe to show."""
    return {key: clean(value) if isinstance(value, str) else value for key, value in event.items() if key != "crc"}


def _text(run: Run) -> str:
    try:
        return run.files.cluster.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _log(run: Run, job: Job, events: Iterable[dict[str, Any]]) -> Sequence[str]:
    attempt = max((event.get("attempt", 1) for event in events), default=1)
    sources = logs.sources(run.files, job, attempt)
    return [clean(text) for text in logs.texts(logs.last(sources, {}, LOG_LINES, rest=True))]
