"""The newest recorded steps of a run, small enough to travel in a page."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from vpipe_cli.runs.store import Run
from vpipe_cli.tracing.read import ACTIONS, RankTrace, read
from worker.errors import NotFinished
from worker.spec.job import Job

MOST = 4000
"""Spans that a page carries."""
GAP = 4
"""A pause this many times the longest span parts one recording from the next."""
KINDS = (
    "forward",
    "backward",
    "input grad",
    "weight grad",
    "update",
    "recompute",
    "receive",
    "send wait",
    "sum",
    "data",
)


def newest(run: Run, job: Job) -> dict[str, Any] | None:
    """Spans as [rank, kind, begin, duration, stage, minibatch, version], times in microseconds; None if none are."""
    try:
        traces = read(run, job)
    except NotFinished:
        return None
    begin, end = _last_window(traces)
    rows: list[list[Any]] = [
        [trace.rank, KINDS.index(span.kind), (span.begin - begin) / 1e3, span.duration / 1e3, *_about(span)]
        for trace in traces
        for span in trace.spans
        if span.kind in KINDS and begin <= span.begin <= end
    ]
    rows.sort(key=lambda row: row[2])
    return {"kinds": KINDS, "rows": rows[:MOST], "ranks": [trace.rank for trace in traces]}


def _about(span: Any) -> tuple[int, int | None, int | None]:
    return span.stage, span.minibatch, span.version


def _last_window(traces: list[RankTrace]) -> tuple[int, int]:
    """Begin and end of the newest recording."""
    actions = sorted((span.begin, span.end) for trace in traces for span in trace.spans if span.kind in ACTIONS)
    pause = GAP * max(end - begin for begin, end in actions)
    begin = actions[0][0]
    for before, after in pairwise(actions):
        if after[0] - before[1] > pause:
            begin = after[0]
    return begin, actions[-1][1]
