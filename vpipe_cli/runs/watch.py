"""Follows a run to its end, showing it: polls its state, numbers and logs; Ctrl-C leaves it, twice stops it."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from types import FrameType

from vpipe_cli import plot
from vpipe_cli.engines import ENGINES
from vpipe_cli.render.console import console
from vpipe_cli.render.summary import left, summary
from vpipe_cli.render.view import KEPT, Style, View, view
from vpipe_cli.runs import logs
from vpipe_cli.runs.feed import feed
from vpipe_cli.runs.job import placed_job
from vpipe_cli.runs.look import Looker
from vpipe_cli.runs.outcome import outcome
from vpipe_cli.runs.state import end_limit, queue_text, standing
from vpipe_cli.runs.store import Run
from worker.spec.job import Job
from worker.spec.records import FINAL, State

POLL = 0.2
LAST_LOOK = 10.0  # seconds for what a run's hosts still have of it, once it has ended
TWICE = 2.0
"""Seconds in which a second Ctrl-C makes a stop of leaving."""
AT_ONCE = 5_000
"""Records of a log shown between two looks at the rest, however fast a rank writes."""
HINT = "Ctrl-C leaves it running, twice stops it"


def follow(run: Run, output: str = "text", style: Style = "auto") -> State:
    """Show a run from its beginning to its end, then how it ended; or until the user leaves it.

    Args:
        output: with ``json`` standard output is the caller's, and all is shown on standard error.
        style: ``auto`` is a live view on a terminal that can do it; otherwise, and with ``plain``, lines are appended.
    Returns:
        The final state, or the one in which the run was left.
    Raises:
        NotFinished: the run has no ranks to follow yet.
    """
    stream = sys.stderr if output == "json" else sys.stdout
    if (waits := _in_queue(run, lambda text: console(stream).print(text))) is not None:
        console(stream).print(left(run.id, asked_to_stop=False))
        return waits
    job = placed_job(run)
    with (
        Interrupts() as interrupts,
        view(style, logs.sources(run.files, job), stream) as shown,
        closing(Watcher(run, job, shown)) as watcher,
    ):
        state = _until_end(run, watcher.look, interrupts)
    target = console(stream)
    if state in FINAL:
        height = target.height if target.is_terminal else None
        target.print(summary(outcome(run), plot.ensure(run), height))
    else:
        target.print(left(run.id, asked_to_stop=interrupts.presses > 1))
    return state


def _in_queue(run: Run, say: Callable[[str], None]) -> State | None:
    """Wait until Slurm has given the run its nodes, and say how it stands; its state if the user left it before."""
    said = ""
    with Interrupts() as interrupts:
        while (state := standing(run).state) == "pending" and not run.files.attempt(1).exists():
            if interrupts.presses or interrupts.terminated:
                return state
            if (text := queue_text(run)) != said:
                said = text
                say(f"run {run.id}: {text}")
            time.sleep(POLL)
    return None


class Interrupts:
    """While entered, Ctrl-C and SIGTERM are counted instead of breaking in anywhere."""

    def __init__(self) -> None:
        self.presses = 0
        self.terminated = False

    def __enter__(self) -> Interrupts:
        self._before = [(number, signal.signal(number, self._on)) for number in (signal.SIGINT, signal.SIGTERM)]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def _on(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            self.presses += 1
        else:
            self.terminated = True


def _until_end(run: Run, look: Callable[[str], State], interrupts: Interrupts) -> State:
    """Look until the run has ended or the user wants no more. ``look`` takes a notice to show."""
    notice, leave_at, stopping = "", float("inf"), False
    while True:
        state = look(notice)
        if state in FINAL:
            return state
        if interrupts.presses >= 2 and not stopping:
            ENGINES[run.engine].request_stop(run)
            notice, leave_at, stopping = "stopping", time.monotonic() + end_limit(run), True
        elif interrupts.presses == 1 and not notice:
            notice = f"leaving; Ctrl-C again within {TWICE:g} s stops the run"
            leave_at = time.monotonic() + TWICE
        elif interrupts.terminated or interrupts.presses > 2 or time.monotonic() > leave_at:
            return state
        time.sleep(POLL)


class Watcher:
    """Reads what is new of a run and hands it to a view. All it knows comes from the run's files."""

    def __init__(self, run: Run, job: Job, shown: View) -> None:
        self._run, self._job, self._view = run, job, shown
        self._feed = feed(run, job, logs.attempts(run.files)[-1])
        self._looker = Looker(run, job)
        if shown.newest_only:
            for record in self._feed.last(KEPT):
                shown.log(record)

    def look(self, notice: str = "") -> State:
        """Show the run as it stands now; in a final state, all there is of it."""
        now = standing(self._run)  # before reading: what was written before the end is then read
        ended = now.state in FINAL
        self._feed.extend(now.attempt)
        for record in self._feed.finish(LAST_LOOK) if ended else islice(self._feed.new(), AT_ONCE):
            self._view.log(record)
        self._view.show(self._looker.frame(now, notice, HINT))
        return now.state

    def close(self) -> None:
        """Look no more."""
        self._feed.close()
