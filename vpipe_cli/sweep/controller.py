"""Runs the trials of a sweep, in a process of its own, detached from whoever typed it (``control`` starts it).

It keeps nothing in memory that is not in the folder: killed at any moment and started again it goes on with what is
missing, and takes over the runs that went on without it. Before a run is started, its id is written down.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from vpipe_cli.engines import ENGINES
from vpipe_cli.launch import Launch
from vpipe_cli.runs.state import end_limit, standing, wait_for_end
from vpipe_cli.runs.store import Run
from vpipe_cli.sweep import arrays, export, optimize, pictures, runner, store
from vpipe_cli.sweep.files import SweepFiles
from vpipe_cli.sweep.records import Definition, Row, Trial
from vpipe_cli.sweep.results import lines, row_of
from worker.errors import VpipeError
from worker.planner.choose import OutOfMemory
from worker.spec.files import append_event
from worker.spec.records import FINAL

POLL = 0.2
TAKEN = 3
"""Exit status where another controller runs the sweep already."""


class Controller:
    """Runs the trials that are not settled, at most ``parallel`` at a time, each on a lane of its own.

    Where they are tasks of an array of Slurm, the lane is the task's number, and Slurm sees to the rest.
    """

    def __init__(self, files: SweepFiles, definition: Definition) -> None:
        self._files, self._definition = files, definition
        self._said = store.said(files)
        self._rows: dict[str, Row] = dict(self._said.rows)
        trials = {trial.identity: trial for trial in definition.trials}
        self._waiting = [trials[identity] for identity in definition.order if not self._said.is_done(identity)]
        self._running: dict[int, tuple[Trial, Run]] = {}
        self._former: list[Run] = []
        self._leaves = False

    def run(self) -> str:
        """Run until all trials have ended, or a stop was asked for; why it is over."""
        self._adopt()
        while self._waiting or self._running:
            if how := self._stop_asked():
                self._waiting = []
                if how == "now":
                    self._end_running()
                else:
                    self._leave()
                if not self._running:
                    return "stopped"
            failed = [row for row in self._collect() if row.state in ("failed", "lost")]
            if failed and self._definition.fail_fast:
                self._end_running()
                return f"failed: trial {failed[0].number} {failed[0].state}: {failed[0].cause or 'no word of why'}"
            self._start_more()
            time.sleep(POLL * (1 + len(self._running) / 32))  # every look reads a file of each
        return "stopped" if self._stop_asked() else "done"

    def _adopt(self) -> None:
        """Take over the runs that an earlier controller left, also such as have ended meanwhile.

        One of a trial that is no longer asked for has the devices all the same, so it is awaited.
        """
        arrays.settle(self._files, set(self._said.open().values()))
        waiting = {trial.identity: trial for trial in self._waiting}
        for identity, run_id in self._said.open().items():
            if (run := runner.again(run_id)) is None:
                continue
            trial = waiting.get(identity)
            if trial is None:
                if standing(run).state == "pending":  # in Slurm's queue, where it need not begin
                    ENGINES[run.engine].request_stop(run)
                self._former.append(run)
                continue
            lane = self._said.lanes[identity]
            while lane in self._running:
                lane += 1
            self._running[lane] = (trial, run)
            self._waiting.remove(trial)
        arrays.throttle([run for _, run in self._running.values()], self._definition.parallel)

    def _start_more(self) -> None:
        self._former = [run for run in self._former if standing(run).state not in FINAL]
        if self._former:
            return
        if self._definition.array:
            if not self._running:
                self._start_array()
            return
        while self._waiting and len(self._running) < self._definition.parallel:
            lane = next(lane for lane in range(self._definition.parallel) if lane not in self._running)
            trial = self._next()
            if trial is None:
                return
            if launch := self._resolved(trial, lane):
                self._running[lane] = (trial, runner.start(self._definition, self._files, trial, launch, lane))

    def _start_array(self) -> None:
        """Queue what waits, as one array, or as much of it as one can hold."""
        chosen: list[tuple[Trial, Launch]] = []
        for trial in self._waiting[: arrays.MOST]:
            if self._stop_asked():
                return
            if launch := self._resolved(trial, len(chosen), check=not chosen):
                chosen.append((trial, launch))
        if chosen:
            runs = arrays.submit(self._files, self._definition, chosen)
            self._running = dict(enumerate(zip([trial for trial, _ in chosen], runs, strict=True)))

    def _resolved(self, trial: Trial, lane: int, check: bool = True) -> Launch | None:
        """The launch of a trial that waits no longer; None where it has ended with that: its memory is not enough."""
        self._waiting.remove(trial)
        try:
            launch = runner.resolved(self._definition, self._files, trial, lane, check)
        except OutOfMemory as error:  # which the planner knows before it runs
            self._end(trial, Row(number=trial.number, identity=trial.identity, state="oom", cause=error.message))
            return None
        self._tell("start", trial=trial.identity, run=launch.run, lane=lane)
        return launch

    def _next(self) -> Trial | None:
        """The trial to run next; with ``optimize`` none once as many as asked for have run, which ends the waiting."""
        if self._definition.optimize is None:
            return self._waiting[0]
        trial = optimize.next_trial(self._definition, self._waiting, self._rows, len(self._running))
        if trial is None:
            self._waiting = []
        return trial

    def _collect(self) -> list[Row]:
        """The rows of the trials that have just ended."""
        ended = []
        for lane, (trial, run) in list(self._running.items()):
            if standing(run).state not in FINAL:
                continue
            del self._running[lane]
            row = row_of(trial, run, self._definition.warmup)
            self._end(trial, row)
            ended.append(row)
        return ended

    def _end(self, trial: Trial, row: Row) -> None:
        """Write down how a trial ended, and all results anew."""
        self._tell("end", row=row.model_dump(mode="json", exclude_defaults=True))
        self._rows[trial.identity] = row
        export.write_all(self._files, self._definition, lines(self._definition, self._rows))

    def _end_running(self) -> None:
        runs = [run for _, run in self._running.values()]
        arrays.end(runs)
        for run in runs:
            wait_for_end(run, end_limit(run))
        self._collect()
        self._running = {}

    def _leave(self) -> None:
        """Let those that run finish; tasks of an array that have not begun need not."""
        if not self._leaves:
            self._leaves = True
            arrays.end_waiting([run for _, run in self._running.values()])

    def _stop_asked(self) -> str:
        """``now``, ``after`` the running trials, or empty."""
        try:
            return self._files.stop.read_text() or "now"
        except FileNotFoundError:
            return ""

    def _tell(self, event: str, **more: Any) -> None:
        append_event(self._files.events, {"time": time.time(), "event": event, **more})


def main(folder: Path, detach: bool = False) -> int:
    """Run the sweep of this folder unless another process does; the exit status.

    Args:
        detach: return in this process as soon as a child of it has taken over.
    """
    files = SweepFiles(folder)
    lock = os.open(files.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        definition = store.read(files)
        if definition is None:
            print(f"{files.definition} says of no sweep", file=sys.stderr)
            return 1
        if detach and os.fork():  # the child has the lock too
            return 0
        append_event(files.events, {"time": time.time(), "event": "begin", "pid": os.getpid()})
        _run(files, definition)
    except BlockingIOError:
        return TAKEN
    finally:
        os.close(lock)
    return 0


def _run(files: SweepFiles, definition: Definition) -> None:
    """Run the sweep, write down why it is over, and its results."""
    runner.be_there(definition.cwd)
    try:
        why = Controller(files, definition).run()
    except (VpipeError, OSError) as error:
        why = f"failed: {error}"
        print(error, file=sys.stderr, flush=True)
    with suppress(OSError):  # a full disk, of which `why` may tell
        rows = store.said(files).rows
        export.write_all(files, definition, lines(definition, rows))
        pictures.ensure(files, definition, lines(definition, rows))
    append_event(files.events, {"time": time.time(), "event": "over", "why": why})
