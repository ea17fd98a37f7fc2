"""What follows a run on the screen: a live view on a terminal, plain lines elsewhere, nothing where that is wished."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Protocol, TextIO

from vpipe_cli.render import logs, text
from vpipe_cli.render.console import can_redraw, console
from vpipe_cli.render.live import Frame, frame, whole
from vpipe_cli.runs.logs import Record, Source
from worker.spec.records import FINAL

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

Style = Literal["auto", "plain", "none"]
KEPT = 200
"""Log lines that a live view keeps for the tallest terminal."""
PLAIN_INTERVAL = 5.0
"""Seconds between two lines of progress."""


class View(AbstractContextManager["View"], Protocol):
    """Shows a run while it is entered."""

    newest_only: bool
    """Whether it has use for no more than the ``KEPT`` newest records."""

    def log(self, record: Record) -> None:
        """Take one record of a log."""

    def show(self, now: Frame) -> None:
        """Show how the run stands."""


class LiveView(AbstractContextManager["LiveView"]):
    """Draws frames on the terminal's other screen, which a change of its size cannot garble; the last numbers stay."""

    newest_only = True

    def __init__(self, target: Console, sources: Sequence[Source]) -> None:
        self._console = target
        self._heads = logs.heads(sources)
        self._records: deque[Record] = deque(maxlen=KEPT)
        self._last: Frame | None = None

    def __enter__(self) -> LiveView:
        self._live = _live(self._console)
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        if self._last is not None and self._last.state not in ("failed", "lost"):  # then what failed needs the room
            now = replace(self._last, notice="", hint="")
            self._console.print(frame(now, [], self._heads, self._console.width, self._console.height))

    def log(self, record: Record) -> None:
        """Keep it for the frames to come."""
        self._records.append(record)

    def show(self, now: Frame) -> None:
        """Draw a frame."""
        self._last = now
        width, height = self._console.size
        self._live.update(frame(now, self._records, self._heads, width, height), refresh=True)


class Screen(AbstractContextManager["Screen"]):
    """The numbers alone, on the terminal's other screen; the last ones stay."""

    def __init__(self, target: Console) -> None:
        self._console = target
        self._last: Frame | None = None

    def __enter__(self) -> Screen:
        self._live = _live(self._console)
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        if self._last is not None:
            self._console.print(self._drawn(replace(self._last, hint="")))

    def show(self, now: Frame) -> None:
        """Draw a frame."""
        self._last = now
        self._live.update(self._drawn(now), refresh=True)

    def _drawn(self, now: Frame) -> RenderableType:
        width, height = self._console.size
        return whole(now, width, height)


def _live(target: Console) -> Live:
    """A screen of its own, as large as the terminal is at each drawing."""
    from rich.live import Live

    return Live(console=target, screen=True, auto_refresh=False, vertical_overflow="crop")


class PlainView(AbstractContextManager["PlainView"]):
    """Appends lines: each log record, each change of state, and now and then the progress."""

    newest_only = False

    def __init__(self, stream: TextIO, sources: Sequence[Source], clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._line = logs.formatter(sources, stream)
        self._clock = clock
        self._state, self._step, self._notice = "", 0, ""
        self._next = clock() + PLAIN_INTERVAL

    def __exit__(self, *_: object) -> None:
        """Nothing is left to do."""

    def log(self, record: Record) -> None:
        """Write it out."""
        self._write(self._line(record))

    def show(self, now: Frame) -> None:
        """Write what has changed."""
        due = self._clock() >= self._next or now.state in FINAL
        if due and now.progress.step > self._step:
            self._write(progress_line(now))
            self._step, self._next = now.progress.step, self._clock() + PLAIN_INTERVAL
        if now.state != self._state and now.state not in FINAL:  # of an end the summary tells
            self._state = now.state
            self._write(f"run {now.run}: {now.state}")
        if now.notice != self._notice:
            self._notice = now.notice
            self._write(now.notice)
        self._stream.flush()

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")


class NoView(AbstractContextManager["NoView"]):
    """Shows nothing."""

    newest_only = True

    def __exit__(self, *_: object) -> None:
        """Nothing is left to do."""

    def log(self, record: Record) -> None:
        """Drop it."""

    def show(self, now: Frame) -> None:
        """Drop it."""


def progress_line(now: Frame) -> str:
    """``step 120/600  loss 5.120  140 samples/s  eta 0:35``."""
    progress = now.progress
    parts = [f"step {progress.step}/{progress.steps}", f"loss {text.loss(progress.loss)}"]
    parts.append(f"{text.rate(progress.samples_per_second)} samples/s")
    if progress.eta:
        parts.append(f"eta {text.clock(progress.eta)}")
    return "  ".join(parts)


def screen() -> Screen | None:
    """The numbers of a run on standard output; None where it cannot be drawn anew."""
    target = console()
    return Screen(target) if can_redraw(target) else None


def view(style: Style, sources: Sequence[Source], stream: TextIO | None = None) -> View:
    """The view of that style on ``stream`` (standard output); ``auto`` is live where the terminal can do it."""
    stream = stream or sys.stdout
    target = console(stream)
    if style == "none":
        return NoView()
    if style == "auto" and can_redraw(target):
        return LiveView(target, sources)
    return PlainView(stream, sources)
