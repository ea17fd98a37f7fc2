"""Torch's own profile of each rank -> events of a Chrome trace on the clock of the spans."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from vpipe_cli.runs.store import Run
from vpipe_cli.tracing.read import RankTrace
from worker.errors import NotFinished

CLOCK = "vpipe clock "
"""Begins the name of the span that tells, in nanoseconds, when it began on the rank's own clock."""
TRACKS = 1000
"""Numbers of tracks that each rank has, behind those of the ranks themselves."""


def events(run: Run, traces: Sequence[RankTrace]) -> list[dict[str, Any]]:
    """The operators of all ranks that have a profile, below the rank's own spans.

    Raises:
        NotFinished: no rank has one.
    """
    found = [event for trace in traces for event in _of_rank(run, trace)]
    if not found:
        hint = (
            "torch records where that was asked for, after the first steps: vpipe launch cluster.yml trace.torch=true"
        )
        raise NotFinished(f"run {run.id} has no profile of torch's own", hint)
    return found


def _of_rank(run: Run, trace: RankTrace) -> Iterator[dict[str, Any]]:
    try:
        recorded = json.loads(run.files.torch_trace(trace.rank).read_bytes())["traceEvents"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    spans = [event for event in recorded if isinstance(event, dict) and event.get("ph") == "X"]
    clocks = [event for event in spans if str(event.get("name")).startswith(CLOCK)]
    if not clocks:
        return
    # A mark is late, never early: the one that was least late tells how far the clocks are apart.
    shift = max((int(each["name"].removeprefix(CLOCK)) + trace.shift) / 1e3 - float(each["ts"]) for each in clocks)
    tracks: dict[str, int] = {}
    for event in spans:
        where = f"{event.get('pid')} {event.get('tid')}"
        if where not in tracks:
            tracks[where] = TRACKS * (trace.rank + 1) + len(tracks)
            name = {"name": f"torch: {event.get('tid')}"}
            yield {"ph": "M", "name": "thread_name", "pid": trace.rank, "tid": tracks[where], "args": name}
        if event not in clocks:
            when = {"ts": float(event["ts"]) + shift, "dur": event.get("dur", 0)}
            what = {"ph": "X", "name": str(event.get("name")), "cat": "torch"}
            yield {**what, "pid": trace.rank, "tid": tracks[where], **when}
