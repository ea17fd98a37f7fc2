"""Spans as a Chrome trace, the JSON that Perfetto opens: a process per rank, arrows for messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vpipe_cli.tracing.read import ACTIONS, RankTrace, Span

SHORT = {"forward": "F", "backward": "B", "input grad": "I", "weight grad": "W", "update": "U"}


def document(traces: Sequence[RankTrace], run: str, more: Iterable[dict[str, Any]] = ()) -> dict[str, Any]:
    """The whole trace as JSON-able values. Times are microseconds from the first span; ``more`` are further events."""
    error = max(trace.offset_error for trace in traces)
    about = {"run": run, "clock": "rank 0", "clock_error_seconds": error}
    return {"displayTimeUnit": "ms", "otherData": about, "traceEvents": [*_events(traces), *more]}


def _events(traces: Sequence[RankTrace]) -> Iterator[dict[str, Any]]:
    flows = {what: number for number, what in enumerate(_messages(traces))}
    for trace in traces:
        place = {"pid": trace.rank, "tid": trace.rank}
        stages = ", ".join(str(stage) for stage in sorted({span.stage for span in trace.spans}))
        yield {"ph": "M", "name": "process_name", **place, "args": {"name": f"rank {trace.rank}, stage {stages}"}}
        yield {"ph": "M", "name": "process_sort_index", **place, "args": {"sort_index": trace.rank}}
        yield {"ph": "M", "name": "thread_name", **place, "args": {"name": trace.host}}
        for span in trace.spans:
            yield {**_slice(span), **place}
            if span.what in flows and span.kind in ("send", "receive"):
                for event in _end_of_arrow(span, flows[span.what]):
                    yield {**event, **place}


def _slice(span: Span) -> dict[str, Any]:
    name = f"{SHORT[span.kind]} {span.minibatch}" if span.kind in ACTIONS else span.kind
    args = {"stage": span.stage, "minibatch": span.minibatch, "version": span.version, "what": span.what}
    args = {key: value for key, value in args.items() if value not in (None, "")}
    return {"ph": "X", "name": name, "cat": span.kind, "ts": span.begin / 1e3, "dur": span.duration / 1e3, "args": args}


def _end_of_arrow(span: Span, number: int) -> Iterator[dict[str, Any]]:
    """An arrow leaves as the send begins, and ends where the wait for it does.

    There it has a slice of its own: viewers turn an arrow round that ends in a slice older than the one it leaves.
    """
    common = {"cat": "message", "name": "message", "id": number}
    inside = min(1000, span.duration // 4)
    if span.kind == "send":
        yield {"ph": "s", "ts": (span.begin + inside) / 1e3, **common}
        return
    begin = (span.end - 2 * inside) / 1e3
    yield {"ph": "X", "name": "arrived", "cat": "arrival", "ts": begin, "dur": 2 * inside / 1e3}
    yield {"ph": "f", "bp": "e", "ts": (span.end - inside) / 1e3, **common}


def _messages(traces: Sequence[RankTrace]) -> list[str]:
    """Messages of which both ends were recorded."""
    ends: dict[str, set[str]] = {}
    for trace in traces:
        for span in trace.spans:
            if span.kind in ("send", "receive"):
                ends.setdefault(span.what, set()).add(span.kind)
    return [what for what, kinds in ends.items() if len(kinds) == 2]
