"""Logs of several ranks in one order of time, in batches: a log can have millions of lines; none is an object here."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain, repeat
from typing import NamedTuple, TypeVar

from worker.logfilter import STAMP, STAMP_ENDS, Block

T = TypeVar("T")
TIME = 27  # bytes of a time in a stamp
ENDS = frozenset(end.decode() for end in STAMP_ENDS)


class Piece(NamedTuple):
    """Whole lines of a log, ``data`` with their newlines; ``lines`` are the same without, each byte as a character."""

    number: int
    """Of the log."""
    data: bytes
    lines: list[str]
    times: list[str]
    """What each line is sorted by."""
    stamped: bool
    """Whether every line has a stamp."""


Make = Callable[[Piece], list[T]]
"""Makes what is wanted of each line of a piece, before they are sorted."""
Entry = tuple[str, int, bytes]
"""The time it is sorted by, the number of its log, and the line as it is written there, without its newline."""


def entries(piece: Piece) -> list[Entry]:
    """The lines one by one, as they are written."""
    return list(zip(piece.times, repeat(piece.number), piece.data.split(b"\n")))


def merged(streams: Sequence[Iterator[Block]], make: Make[T]) -> Iterator[list[T]]:
    """The lines of all logs in the order of their stamps; lines of one log stay in its order whatever their stamps.

    Of each log at most a block is held. A block is asked for only when all lines of the one before are yielded and
    the next batch is asked for: so a log knows what was taken of it.
    """
    held: list[tuple[list[str], list[T]]] = [([], []) for _ in streams]
    newest = [""] * len(streams)
    open_streams = set(range(len(streams)))
    while True:
        for number in sorted(open_streams):
            while not held[number][0] and number in open_streams:
                block = next(streams[number], None)
                if block is None:
                    open_streams.discard(number)
                elif block[1]:
                    piece = _piece(number, block[1], newest[number])
                    held[number] = piece.times, make(piece)
                    newest[number] = piece.times[-1]
        if not any(times for times, _ in held):
            return
        horizon = min((held[number][0][-1] for number in open_streams), default=None)
        yield _until(held, horizon)


def _piece(number: int, data: bytes, newest: str) -> Piece:
    """A block taken apart. A line without a stamp, torn by a full disk, goes with the one before."""
    lines = data.decode("latin-1").split("\n")
    lines.pop()
    stamped = {line[TIME - 1 : TIME + 3] for line in lines} <= ENDS
    times = [line[:TIME] for line in lines]
    if not stamped:
        times = [time if STAMP.match(line) else "" for time, line in zip(times, data.split(b"\n")[:-1], strict=True)]
    if times[0] < newest or sorted(times) != times:
        times = list(accumulate(times, max, initial=newest))[1:]
    return Piece(number, data, lines, times, stamped)


def _until(held: list[tuple[list[str], list[T]]], horizon: str | None) -> list[T]:
    """Take what is not newer than ``horizon`` (all, if there is none) out of ``held``, sorted."""
    ready = []
    for number, (times, made) in enumerate(held):
        cut = len(times) if horizon is None else bisect_right(times, horizon)
        if cut:
            ready.append((times[:cut], made[:cut]))
            held[number] = times[cut:], made[cut:]
    return _in_order(ready)


def _in_order(parts: Sequence[tuple[list[str], list[T]]]) -> list[T]:
    """What was made of some lines, by their times; what has the same time in the order of the parts."""
    if len(parts) == 1:
        return parts[0][1]
    times = list(chain.from_iterable(times for times, _ in parts))
    made = list(chain.from_iterable(made for _, made in parts))
    return [made[place] for place in sorted(range(len(times)), key=times.__getitem__)]


def last(tails: Sequence[Sequence[bytes]], count: int, make: Make[T]) -> list[T]:
    """What is made of the last ``count`` lines of all logs, given the last so many of each."""
    pieces = [
        _piece(number, b"".join(line + b"\n" for line in lines), "") for number, lines in enumerate(tails) if lines
    ]
    return _in_order([(piece.times, make(piece)) for piece in pieces])[-count:] if count else []


def passes(
    read: Callable[[bool], Iterator[list[T]]], finished: Callable[[], bool], pause: Callable[[], None]
) -> Iterator[list[T]]:
    """``read`` again and again, with a ``pause`` between, until ``finished`` and all is read.

    ``read`` is told whether nobody writes any more.
    """
    ended = False
    while not ended:
        ended = finished()  # asked before reading: what is written before the end is read
        yield from read(ended)
        if not ended:
            pause()
