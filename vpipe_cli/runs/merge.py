"""Logs of several ranks in one order of time, in batches: a log can have millions of lines; none is an object here."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, repeat
from operator import itemgetter

from worker.logfilter import STAMP, STAMP_ENDS, Block

Entry = tuple[bytes, int, bytes]
"""The time it is sorted by, the number of its log, and the line as it is written there, without its newline."""


def merged(streams: Sequence[Iterator[Block]]) -> Iterator[list[Entry]]:
    """The lines of all logs in the order of their stamps; lines of one log stay in its order whatever their stamps.

    Of each log at most a block is held. A block is asked for only when all lines of the one before are yielded and
    the next batch is asked for: so a log knows what was taken of it.
    """
    held: list[tuple[list[bytes], list[Entry]]] = [([], []) for _ in streams]
    newest = [b""] * len(streams)
    open_streams = set(range(len(streams)))
    while True:
        for number in sorted(open_streams):
            while not held[number][1] and number in open_streams:
                block = next(streams[number], None)
                if block is None:
                    open_streams.discard(number)
                elif block[1]:
                    held[number] = _entries(number, block[1], newest[number])
                    newest[number] = held[number][0][-1]
        if not any(entries for _, entries in held):
            return
        horizon = min((held[number][0][-1] for number in open_streams), default=None)
        yield _until(held, horizon)


def _entries(number: int, data: bytes, newest: bytes) -> tuple[list[bytes], list[Entry]]:
    """The times and the entries of a block. A line without a stamp, torn by a full disk, goes with the one before."""
    lines = data.split(b"\n")
    lines.pop()
    whole = {line[26:30] for line in lines} <= STAMP_ENDS
    stamps = [line[:27] for line in lines] if whole else [line[:27] if STAMP.match(line) else b"" for line in lines]
    times = list(accumulate(stamps, max, initial=newest))[1:]
    return times, list(zip(times, repeat(number), lines))


def _until(held: list[tuple[list[bytes], list[Entry]]], horizon: bytes | None) -> list[Entry]:
    """Take what is not newer than ``horizon`` (all, if there is none) out of ``held``, sorted."""
    ready: list[Entry] = []
    several = 0
    for number, (times, entries) in enumerate(held):
        cut = len(times) if horizon is None else bisect_right(times, horizon)
        if cut:
            several += 1
            ready += entries[:cut]
            held[number] = (times[cut:], entries[cut:])
    return sorted(ready, key=itemgetter(0)) if several > 1 else ready


def last(tails: Sequence[Sequence[bytes]], count: int) -> list[Entry]:
    """The last ``count`` lines of all logs, given the last so many of each."""
    entries = [entry for number, lines in enumerate(tails) for entry in _tail(number, lines)]
    return sorted(entries, key=itemgetter(0))[-count:] if count else []


def _tail(number: int, lines: Sequence[bytes]) -> list[Entry]:
    return _entries(number, b"".join(line + b"\n" for line in lines), b"")[1]


def passes(
    read: Callable[[bool], Iterator[list[Entry]]], finished: Callable[[], bool], pause: Callable[[], None]
) -> Iterator[list[Entry]]:
    """``read`` again and again, with a ``pause`` between, until ``finished`` and all is read.

    ``read`` is told whether nobody writes any more.
    """
    ended = False
    while not ended:
        ended = finished()  # asked before reading: what is written before the end is read
        yield from read(ended)
        if not ended:
            pause()
