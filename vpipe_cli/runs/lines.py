"""Whole lines of a file that another process appends to, by byte offset: forwards, backwards, never all in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

BLOCK = 256 * 1024

Line = tuple[int, bytes]
"""The offset behind a line, and the line without its newline."""


def forward(path: Path, offset: int = 0, *, rest: bool = False) -> Iterator[Line]:
    """The lines from ``offset`` on; none if there is no such file.

    A last line that is still being written is left for the next time, unless ``rest`` says that nobody writes any more.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        pieces: list[bytes] = []  # of the line whose end is not read yet
        while block := file.read(BLOCK):
            *lines, last = block.split(b"\n")
            for line in lines:
                whole = b"".join((*pieces, line))
                pieces.clear()
                offset += len(whole) + 1
                yield offset, whole
            pieces.append(last)
        partial = b"".join(pieces)
        if rest and partial:
            yield offset + len(partial), partial


def backward(path: Path, *, rest: bool = False) -> Iterator[Line]:
    """The same lines as ``forward`` gives now, last first."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        unread = after = file.seek(0, 2)
        pieces: list[bytes] = []  # of the line whose beginning is not read yet, last first
        wanted = rest  # what stands behind the last newline is a line for ``rest`` alone, and only if it is not empty
        while unread > 0:
            start = max(0, unread - BLOCK)
            file.seek(start)
            block = file.read(unread - start)
            stop = len(block)
            while (newline := block.rfind(b"\n", 0, stop)) >= 0:
                line = b"".join((block[newline + 1 : stop], *reversed(pieces)))
                if wanted and (line or after > start + newline + 1):
                    yield after, line
                pieces.clear()
                after, stop, wanted = start + newline + 1, newline, True
            pieces.append(block[:stop])
            unread = start
        if wanted and after > 0:
            yield after, b"".join(reversed(pieces))
