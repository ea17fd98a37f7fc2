"""Answers a question about the logs of a run: from where on, which lines, how many, and whether to go on following."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from vpipe_cli.runs import merge
from vpipe_cli.runs.logs import Cursor, Source
from vpipe_cli.runs.merge import Make, T
from worker import logfilter
from worker.logfilter import Block


@dataclass(frozen=True)
class Query:
    """What ``vpipe logs`` was asked. ``since`` and ``until`` are stamps; ``tail`` counts lines that match ``grep``."""

    since: str | None = None
    until: str | None = None
    grep: str | None = None
    tail: int | None = None
    follow: bool = False


class Reader(Protocol):
    """The chosen logs, wherever they are. ``sources`` may grow while they are followed; their order stays."""

    sources: list[Source]

    def tails(self, rest: bool) -> list[list[bytes]]:
        """The last lines of each log, as many as the query wants; what is read next stands behind them."""

    def streams(self, rest: bool) -> list[Iterator[Block]]:
        """What is new in each log; ``rest`` as in ``worker.logfilter.blocks``."""


class LocalReader:
    """Logs on this machine. ``find`` names them anew at every look, as a restart adds some."""

    def __init__(self, find: Callable[[], list[Source]], query: Query) -> None:
        self._find, self._query = find, query
        self._cursor: Cursor = {}
        self.sources: list[Source] = []

    def tails(self, rest: bool) -> list[list[bytes]]:
        """The last lines of each log."""
        self._look()
        found = []
        for source in self.sources:
            begin, count = self._cursor[source.key], self._query.tail or 0
            end, lines = logfilter.tail(str(source.path), count, self._query.grep, begin, rest)
            self._cursor[source.key] = end
            found.append([line for _, line in lines])
        return found

    def streams(self, rest: bool) -> list[Iterator[Block]]:
        """What is new in each log."""
        self._look()
        return [self._new(source, rest) for source in self.sources]

    def _look(self) -> None:
        known = set(self.sources)
        self.sources += [source for source in self._find() if source not in known]
        for source in self.sources:
            if source.key not in self._cursor:
                since = self._query.since
                self._cursor[source.key] = logfilter.since(str(source.path), since.encode()) if since else 0

    def _new(self, source: Source, rest: bool) -> Iterator[Block]:
        found = logfilter.blocks(str(source.path), self._cursor[source.key], rest)
        for end, data in logfilter.matching(found, self._query.grep, (self._query.until or "").encode()):
            yield end, data
            self._cursor[source.key] = end


def batches(
    reader: Reader, query: Query, finished: Callable[[], bool], pause: Callable[[], None], make: Make[T]
) -> Iterator[list[T]]:
    """What is made of the lines that answer the query, in the order of time.

    Args:
        make: gets pieces whose number is the place of their log in ``reader.sources``.
    """
    if query.tail is not None:
        yield merge.last(reader.tails(not query.follow and finished()), query.tail, make)
    if query.follow:
        yield from merge.passes(lambda ended: merge.merged(reader.streams(ended), make), finished, pause)
    elif query.tail is None:
        yield from merge.merged(reader.streams(finished()), make)
