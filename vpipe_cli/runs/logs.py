"""The logs of a run's ranks as one stream of records: read, followed by byte offset, searched by time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from heapq import merge
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import NamedTuple

from vpipe_cli.runs import lines
from worker.errors import UsageError
from worker.spec.files import RunFiles
from worker.spec.job import Job

STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) ([oe]) ")
STREAMS = {b"o": "stdout", b"e": "stderr"}
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

Cursor = dict[int, int]
"""Bytes of each rank's log that were read; handed back, reading goes on there. A rank not named is at its beginning."""


class Source(NamedTuple):
    """One rank's log, and what its lines are headed with."""

    rank: int
    stage: int
    host: str
    path: Path


class Record(NamedTuple):
    """One line of a log: raw bytes, not yet fit for a terminal. ``time`` is RFC 3339 in UTC, so it sorts as text."""

    time: str
    source: Source
    stream: str
    text: bytes
    offset: int


def sources(files: RunFiles, job: Job, attempt: int = 1) -> list[Source]:
    """The log of every rank of an attempt."""
    return [Source(rank.rank, rank.stage, rank.host, files.log(attempt, rank.rank)) for rank in job.ranks]


def choose(every: Sequence[Source], ranks: str | None = None, stage: int | None = None) -> list[Source]:
    """The sources of some ranks (``"0,2-3"``) and of one stage. Raises UsageError where nothing can be meant."""
    chosen = list(every)
    if ranks is not None:
        wanted = set(chain.from_iterable(map(_span, ranks.split(","))))
        known = {source.rank for source in every}
        if missing := wanted - known:
            raise UsageError(f"--rank {ranks}: no rank {min(missing)}", f"this run has ranks 0 to {max(known)}")
        chosen = [source for source in chosen if source.rank in wanted]
    if stage is not None:
        chosen = [source for source in chosen if source.stage == stage]
        if not chosen:
            raise UsageError(f"--stage {stage}: none of these ranks runs it", "`vpipe status` shows ranks and stages")
    return chosen


def _span(text: str) -> range:
    match = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", text)
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise UsageError(f"--rank: {text!r} is neither a rank nor a range of ranks", "write it like 0,2-3")
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def read(chosen: Sequence[Source], cursor: Cursor, *, rest: bool = False) -> Iterator[Record]:
    """What the logs hold behind ``cursor``, in the order of time; moves ``cursor`` behind each record it yields.

    A line still being written comes with the next read, or with ``rest``, when nobody writes any more.
    """
    logs = (_records(source, lines.forward(source.path, cursor.get(source.rank, 0), rest=rest)) for source in chosen)
    for record in merge(*logs, key=_order):
        cursor[record.source.rank] = record.offset
        yield record


def follow(
    chosen: Sequence[Source], cursor: Cursor, finished: Callable[[], bool], pause: Callable[[], None]
) -> Iterator[Record]:
    """``read`` again and again, with a ``pause`` between, until the run is ``finished`` and all is read."""
    ended = False
    while not ended:
        ended = finished()  # asked before reading: what is written before the end is read
        yield from read(chosen, cursor, rest=ended)
        if not ended:
            pause()


def last(
    chosen: Sequence[Source],
    cursor: Cursor,
    count: int,
    wanted: Callable[[Record], bool] = lambda record: True,
    *,
    rest: bool = False,
) -> list[Record]:
    """The last ``count`` wanted records behind ``cursor``, in the order of time; moves ``cursor`` to the end."""
    begin = dict(cursor)
    logs = [_backward(source, cursor, begin.get(source.rank, 0), rest) for source in chosen]
    newest = merge(*logs, key=_order, reverse=True)
    return list(islice(filter(wanted, newest), count))[::-1]


def _backward(source: Source, cursor: Cursor, begin: int, rest: bool) -> Iterator[Record]:
    behind = takewhile(lambda line: line[0] > begin, lines.backward(source.path, rest=rest))
    newest = next(behind, None)
    if newest is None:
        return
    cursor[source.rank] = newest[0]
    group: list[lines.Line] = []  # a stamped line and the torn ones behind it, last first
    for line in chain([newest], behind):
        group.append(line)
        if STAMP.match(line[1]):
            yield from reversed(list(_records(source, reversed(group))))
            group.clear()
    yield from reversed(list(_records(source, reversed(group))))


def _order(record: Record) -> tuple[str, int]:
    return record.time, record.source.rank


def _records(source: Source, found: Iterable[lines.Line]) -> Iterator[Record]:
    """Lines as records. One without a stamp (torn by a full disk) is kept, at the time of the one read before it."""
    time = ""
    for offset, line in found:
        match = STAMP.match(line)
        if match:
            time = match[1].decode()
            yield Record(time, source, STREAMS[match[2]], line[match.end() :], offset)
        elif line:
            yield Record(time, source, "stdout", line, offset)


def since(path: Path, stamp: str) -> int:
    """The offset of the first record stamped ``stamp`` or later, by bisection; behind the last if there is none."""
    low, high = 0, path.stat().st_size if path.exists() else 0
    while high - low > lines.BLOCK:
        middle = (low + high) // 2
        found = next((time for _, _, time in _stamps(path, middle)), "")
        low, high = (middle, high) if found and found < stamp else (low, middle)
    behind = low
    for begin, end, time in _stamps(path, low):
        if time >= stamp:
            return begin
        behind = end
    return behind


def _stamps(path: Path, offset: int) -> Iterator[tuple[int, int, str]]:
    """Beginning, end and time of the stamped lines that begin behind ``offset``, or at 0."""
    begin = offset
    for end, line in lines.forward(path, offset):
        match = STAMP.match(line)
        if match and (begin > offset or offset == 0):
            yield begin, end, match[1].decode()
        begin = end


def moment(text: str, now: datetime) -> str:
    """``5m``, ``2h``, ``1d`` ago or an RFC 3339 time, as a log's stamp. Raises UsageError for anything else."""
    try:
        if match := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text):
            then = now - timedelta(**{UNITS[match[2]]: float(match[1])})
        else:
            then = datetime.fromisoformat(text.replace("Z", "+00:00"))
        return then.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    except (ValueError, OverflowError):
        hint = "write 30s, 5m, 2h, 1d, or a time like 2026-11-23T12:49:00Z"
        raise UsageError(f"--since {text}: no time", hint) from None


def pattern(text: str) -> re.Pattern[str]:
    """The expression of ``--grep``. Raises UsageError with the place of the mistake."""
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"--grep {text!r}: {error}", "put a backslash before a character meant as it is") from None
