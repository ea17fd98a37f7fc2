"""What this rank does at this moment, in a small file that hostd reads: the one sign of life that a hang cannot fake.

A rank that trains counts every action; one that stands still does not, however alive its threads are. The file is
mapped into memory, so that saying it costs about a microsecond and never waits for a disk. There is one rank per
process, so there is one such file per process; without ``open_at`` nothing is written.
"""

from __future__ import annotations

import mmap
from pathlib import Path

SIZE = 1024
TEXT = 200  # characters kept of what is done and of what is waited for


class _Progress:
    """The present record: count, step, doing, waiting, limit; separated by tabs, ended by a zero byte."""

    def __init__(self) -> None:
        self.count = self.step = 0
        self.doing = self.waiting = self.limit = ""
        self.memory: mmap.mmap | None = None
        self.allowed: tuple[int, float] = (0, 0.0)

    def write(self) -> None:
        if self.memory is None:
            return
        record = f"{self.count}\t{self.step}\t{self.doing}\t{self.waiting}\t{self.limit}\0".encode()
        self.memory[: len(record)] = record


_now = _Progress()


def open_at(path: Path) -> None:
    """Keep the record in ``path`` from now on. Raises OSError."""
    path.touch(mode=0o600)
    with path.open("r+b") as file:
        file.truncate(SIZE)
        _now.memory = mmap.mmap(file.fileno(), SIZE)
    _now.write()


def at(step: int, doing: object, limit: float | None = None) -> None:
    """Count one thing more: the rank now does ``doing``, in ``step`` (counted from 1; 0 before the first).

    Args:
        limit: seconds it may take without this rank's saying anything more, where that may be more than what a
            training step is given: for a checkpoint, an evaluation.
    """
    _now.count += 1
    _now.step, _now.doing = step, _clean(doing)
    if limit is None and step <= _now.allowed[0]:
        limit = _now.allowed[1]
    _now.limit = "" if limit is None else f"{limit:g}"
    _now.write()


def allow(step: int, limit: float) -> None:
    """Up to the end of ``step``, whatever has no limit of its own may take ``limit`` seconds."""
    _now.allowed = step, limit


def wait_for(what: object) -> None:
    """The rank waits for ``what`` from another, until ``go_on``."""
    _now.waiting = _clean(what)
    _now.write()


def go_on() -> None:
    """What was waited for is there, or has been given up."""
    _now.count += 1
    _now.waiting = ""
    _now.write()


def step() -> int:
    """The step that this rank is in, counted from 1; 0 before the first."""
    return _now.step


def _clean(what: object) -> str:
    return str(what).replace("\t", " ").replace("\0", "")[:TEXT]
