"""trace/rank-N.jsonl of every rank -> spans on the clock of rank 0."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from vpipe_cli.runs.store import Run
from worker.errors import NotFinished
from worker.spec.job import Job

ACTIONS = frozenset({"forward", "backward", "input grad", "weight grad", "update"})
WAITS = frozenset({"receive", "send wait", "sum", "data"})
"""What a rank's metrics count as waiting."""


@dataclass(frozen=True)
class Span:
    """Something a rank did; ``begin`` and ``end`` in nanoseconds since the first span of the run."""

    kind: str
    what: str
    begin: int
    end: int
    stage: int
    minibatch: int | None
    version: int | None

    @property
    def duration(self) -> int:
        """Nanoseconds."""
        return self.end - self.begin


@dataclass
class RankTrace:
    """The spans of one rank in order of their beginnings, and how well its clock is known."""

    rank: int
    host: str
    offset_error: float = 0.0
    spans: list[Span] = field(default_factory=list)
    shift: int = 0
    """Nanoseconds to be added to the rank's own clock."""


def read(run: Run, job: Job) -> list[RankTrace]:
    """The newest attempt's spans of each rank that has any, on one time line.

    A line that is torn or is no span is passed over.

    Raises:
        NotFinished: nothing has been recorded.
    """
    found = [_rank(run, rank.rank, rank.host) for rank in job.ranks]
    begins = [span.begin for trace in found for span in trace.spans]
    if not begins:
        hint = f"`vpipe status {run.id}` says how far it is; `trace.window: 0` in its cluster.yml turns recording off"
        raise NotFinished(f"run {run.id} has recorded no step yet", hint)
    first = min(begins)
    for trace in found:
        trace.shift -= first
        trace.spans = sorted((_moved(span, -first) for span in trace.spans), key=lambda span: (span.begin, -span.end))
    return [trace for trace in found if trace.spans]


def _rank(run: Run, rank: int, host: str) -> RankTrace:
    trace = RankTrace(rank, host)
    try:
        text = run.files.trace(rank).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return trace
    for line in text.splitlines():
        record = _parsed(line)
        if isinstance(record, dict):  # an attempt begins; what the one before recorded may be done again
            trace = RankTrace(rank, host, record.get("offset_error_ns", 0) / 1e9, shift=record.get("offset_ns", 0))
        elif isinstance(record, list) and len(record) == 7:
            kind, what, begin, end, stage, minibatch, version = record
            place = None if minibatch < 0 else minibatch
            trace.spans.append(Span(kind, what, begin + trace.shift, end + trace.shift, stage, place, version))
    return trace


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _moved(span: Span, by: int) -> Span:
    return Span(span.kind, span.what, span.begin + by, span.end + by, span.stage, span.minibatch, span.version)
