"""The logs of a run's ranks: which there are, and what is in them, as lines in the order of time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from vpipe_cli.runs import merge
from worker import logfilter
from worker.errors import UsageError
from worker.logfilter import STAMP, Block
from worker.spec.files import RunFiles
from worker.spec.job import Job

STREAMS = {b"o": "stdout", b"e": "stderr"}
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

Key = tuple[int, int]
Cursor = dict[Key, int]
"""Bytes of each log, by attempt and rank, that were read; handed back, reading goes on there. One not named is new."""


class Source(NamedTuple):
    """One rank's log of one attempt, and what its lines are headed with."""

    rank: int
    stage: int
    host: str
    path: Path
    attempt: int = 1

    @property
    def key(self) -> Key:
        """What tells it from the others of its run."""
        return self.attempt, self.rank


class Record(NamedTuple):
    """One line of a log: raw bytes, not yet fit for a terminal. ``time`` is RFC 3339 in UTC, so it sorts as text."""

    time: str
    source: Source
    stream: str
    text: bytes


def sources(files: RunFiles, job: Job, attempt: int = 1) -> list[Source]:
    """The log of every rank of an attempt."""
    return [Source(rank.rank, rank.stage, rank.host, files.log(attempt, rank.rank), attempt) for rank in job.ranks]


def attempts(files: RunFiles) -> list[int]:
    """The attempts there are, counted from 1; the first one even before it began."""
    found = (re.fullmatch(r"attempt-([1-9]\d{0,5})", path.name) for path in files.folder.glob("attempt-*"))
    return sorted(int(match[1]) for match in found if match) or [1]


def choose(
    every: Sequence[Source], ranks: str | None = None, stage: int | None = None, host: str | None = None
) -> list[Source]:
    """The sources of some ranks (``"0,2-3"``), of one stage, of one host. Raises UsageError if nothing can be meant."""
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
    if host is not None:
        chosen = [source for source in chosen if source.host == host]
        if not chosen:
            hosts = ", ".join(dict.fromkeys(source.host for source in every))
            raise UsageError(f"--host {host}: none of these ranks runs there", f"this run is on {hosts}")
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

    def blocks(source: Source) -> Iterator[Block]:
        return tracked(source, logfilter.blocks(str(source.path), cursor.get(source.key, 0), rest), cursor)

    for batch in merge.merged([blocks(source) for source in chosen], merge.entries):
        for entry in batch:
            source = chosen[entry[1]]
            cursor[source.key] += len(entry[2]) + 1
            yield record(entry, source)


def tracked(source: Source, stream: Iterator[Block], cursor: Cursor) -> Iterator[Block]:
    """The blocks of a log, ``cursor`` at the beginning of each when it is handed out."""
    for end, data in stream:
        cursor[source.key] = end - len(data)
        yield end, data
        cursor[source.key] = end


def last(chosen: Sequence[Source], cursor: Cursor, count: int, *, rest: bool = False) -> list[Record]:
    """The last ``count`` records behind ``cursor``, in the order of time; moves ``cursor`` to the end."""
    tails: list[list[bytes]] = []
    for source in chosen:
        begin = cursor.get(source.key, 0)
        cursor[source.key], lines = logfilter.tail(str(source.path), count, None, begin, rest)
        tails.append([line for _, line in lines])
    return [record(entry, chosen[entry[1]]) for entry in merge.last(tails, count, merge.entries)]


def record(entry: merge.Entry, source: Source) -> Record:
    """An entry of a merged log with all that is known of it."""
    time, _, line = entry
    match = STAMP.match(line)
    if match is None:
        return Record(time, source, "stdout", line)
    return Record(match[1].decode(), source, STREAMS[match[2]], line[match.end() :])


def texts(records: Iterable[Record]) -> list[str]:
    """What the records say."""
    return [found.text.decode("utf-8", "replace") for found in records]


def moment(text: str, now: datetime, option: str = "--since") -> str:
    """``5m``, ``2h``, ``1d`` ago or an RFC 3339 time, as a log's stamp. Raises UsageError for anything else."""
    try:
        if match := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text):
            then = now - timedelta(**{UNITS[match[2]]: float(match[1])})
        else:
            then = datetime.fromisoformat(text.replace("Z", "+00:00"))
        return then.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    except (ValueError, OverflowError):
        hint = "write 30s, 5m, 2h, 1d, or a time like 2026-11-23T12:49:00Z"
        raise UsageError(f"{option} {text}: no time", hint) from None


def pattern(text: str) -> re.Pattern[str]:
    """The expression of ``--grep``. Raises UsageError with the place of the mistake."""
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"--grep {text!r}: {error}", "put a backslash before a character meant as it is") from None
