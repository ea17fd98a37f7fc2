"""Timed spans of one rank: what it did, for which minibatch, with which weights, and what it waited for.

Recording is on for some steps only; while it is off, a span costs a function call. There is one rank per process, so
there is one such record per process; without ``open_at`` nothing is recorded. Times are nanoseconds of this machine's
monotonic clock, and the first line of the file says how far that is from the clock of rank 0.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import IO, Any

FIRST = 2
"""The first step recorded: step 1 is for warming up."""

Span = tuple[str, str, int, int, int, int, int | None]
"""Kind, what, begin and end in nanoseconds, stage, minibatch (-1: none), weight version (None: the current one)."""


class _Recorder:
    """Where spans go, and whether they do at the moment."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.stage = -1
        self.is_on = False
        self.file: IO[str] | None = None
        self.every = self.window = 0
        self.also: Callable[[bool], None] | None = None


_now = _Recorder()
NOTHING: AbstractContextManager[None] = nullcontext()
"""For a `with` that may have nothing to do: to make one costs more than to enter it."""


class _Timed:
    """Records the time inside it, and adds it to a stopwatch."""

    def __init__(self, kind: str, what: str, minibatch: int, version: int | None, watch: Stopwatch | None) -> None:
        self._kind, self._what, self._minibatch, self._version = kind, what, minibatch, version
        self._watch = watch

    def __enter__(self) -> None:
        self._begin = time.monotonic_ns()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        end = time.monotonic_ns()
        if self._watch is not None:
            self._watch.nanoseconds += end - self._begin
        if _now.is_on:
            _now.spans.append((self._kind, self._what, self._begin, end, _now.stage, self._minibatch, self._version))


class Stopwatch:
    """How long a rank has waited so far. Each wait is one reading of the clock, for the metrics and for the trace."""

    def __init__(self) -> None:
        self.nanoseconds = 0

    @property
    def seconds(self) -> float:
        """All waits so far."""
        return self.nanoseconds * 1e-9

    def during(self, kind: str, what: object = "", minibatch: int = -1) -> AbstractContextManager[None]:
        """Count the time inside, and record it as a span if this step is recorded."""
        return _Timed(kind, str(what) if _now.is_on else "", minibatch, None, self)


def open_at(
    path: Path, header: dict[str, Any], every: int, window: int, also: Callable[[bool], None] | None = None
) -> None:
    """Record into ``path`` from now on: ``window`` steps from FIRST, and so many again every ``every`` steps.

    Args:
        header: the file's first line: whose spans they are, and the clock's offset.
        also: told when the recording of a window begins (True) and ends.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    _now.file = path.open("a", encoding="utf-8")
    _now.file.write(json.dumps(header) + "\n")
    _now.file.flush()
    _now.every, _now.window, _now.also = every, window, also


def begin(step: int, stage: int) -> None:
    """The rank now does something of ``step`` (counted from 1) in ``stage``; what follows belongs to it."""
    if not _now.every:
        return
    _now.stage = stage
    is_on = step >= FIRST and (step - FIRST) % _now.every < _now.window
    if _now.is_on and not is_on:
        flush()
    if _now.also is not None and is_on != _now.is_on:
        _now.also(is_on)
    _now.is_on = is_on


def is_on() -> bool:
    """Whether this step is recorded."""
    return _now.is_on


def span(kind: str, what: object = "", minibatch: int = -1, version: int | None = None) -> AbstractContextManager[None]:
    """Record the time inside, if this step is recorded."""
    return _Timed(kind, str(what), minibatch, version, None) if _now.is_on else NOTHING


def flush() -> None:
    """Write out what has been recorded. A full disk costs spans, never the run."""
    spans, _now.spans = _now.spans, []
    if _now.file is None:
        return
    try:
        _now.file.writelines(json.dumps(span) + "\n" for span in spans)
        _now.file.flush()
    except OSError:
        _now.every, _now.is_on = 0, False


def close() -> None:
    """Write out the rest, and record no more."""
    flush()
    if _now.also is not None and _now.is_on:
        _now.also(False)
    if _now.file is not None:
        _now.file.close()
    _now.file, _now.every, _now.is_on, _now.also = None, 0, False, None
