"""Follows a sweep to its end, showing it; Ctrl-C leaves it, twice stops it. The controller does not notice."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

from vpipe_cli.render import sweep as drawn
from vpipe_cli.render.console import console
from vpipe_cli.render.sweep_table import has_ended
from vpipe_cli.runs import store as runs
from vpipe_cli.runs.job import placed_job
from vpipe_cli.runs.metrics import Meter
from vpipe_cli.runs.state import standing
from vpipe_cli.runs.watch import TWICE, Interrupts
from vpipe_cli.sweep import control, pictures, store
from vpipe_cli.sweep.files import SweepFiles
from vpipe_cli.sweep.records import Definition, Row, Trial
from vpipe_cli.sweep.results import Line, lines
from worker.errors import NotFinished, RunNotFound

POLL = 0.3
STOP_LIMIT = 60.0  # seconds in which a sweep that was asked to stop ends its trials


@dataclass(frozen=True)
class Look:
    """A sweep at one moment. ``over`` is why it has ended, ``gone`` why it has not and nobody runs it."""

    definition: Definition
    table: list[Line]
    over: str
    gone: str = ""

    @property
    def done(self) -> int:
        """How many trials have ended."""
        return sum(has_ended(line.row) for line in self.table)

    @property
    def state(self) -> str:
        """In one word."""
        if self.gone:
            return "left off"
        return self.over.partition(":")[0] if self.over else "running"


@dataclass
class Reader:
    """Looks at a sweep's folder, and at the numbers of the trials that run."""

    files: SweepFiles
    definition: Definition
    _meters: dict[str, Meter] = field(default_factory=dict)

    def look(self) -> Look:
        """The sweep as it stands now."""
        alive = store.is_alive(self.files)  # before its events: what was written before the end is then read
        said = store.said(self.files)
        rows = dict(said.rows)
        for trial in self.definition.trials:
            if trial.identity in said.runs and trial.identity not in rows:
                rows[trial.identity] = self._running(trial, said.runs[trial.identity])
        table = lines(self.definition, rows)
        over = "" if alive else said.over
        gone = "" if alive or over else control.why_gone(self.files)
        return Look(self.definition, table, over, gone)

    def _running(self, trial: Trial, run_id: str) -> Row:
        row = Row(number=trial.number, identity=trial.identity, run=run_id, state="planning")
        try:
            run = runs.find(run_id)
            if run_id not in self._meters:
                self._meters[run_id] = Meter(run.files, placed_job(run))
        except (NotFinished, RunNotFound):
            return row
        meter, state = self._meters[run_id], standing(run).state  # before its numbers: an end is told with all of them
        meter.update()
        now = meter.progress()
        timed = [rank.timing for rank in now.ranks if rank.timing]
        return row.model_copy(
            update={
                "state": state, "step": now.step, "steps": now.steps, "loss": now.loss,
                "samples_per_second": now.samples_per_second,
                "memory_bytes": [timing.memory for timing in timed], "idle": [timing.idle_share for timing in timed],
            }
        )  # fmt: skip


def follow(files: SweepFiles, definition: Definition, output: str = "text") -> Look:
    """Show the sweep to its end, or until the user leaves it; with ``json`` on standard error."""
    stream = sys.stderr if output == "json" else sys.stdout
    reader = Reader(files, definition)
    with Interrupts() as interrupts, drawn.view(stream) as shown:
        look = _until_end(reader, shown, interrupts)
    target = console(stream)
    if look.over or look.gone:
        finish(files, look, output)
    else:
        target.print(drawn.left(definition.sweep, asked_to_stop=interrupts.presses > 1))
    return look


def finish(files: SweepFiles, look: Look, output: str = "text", commands: bool = False) -> None:
    """Show how a sweep has ended, or stands: the table, plots, files."""
    target = console(sys.stderr if output == "json" else sys.stdout)
    picture = pictures.ensure(files, look.definition, look.table)
    width = target.width if target.is_terminal else 100
    target.print(drawn.summary(look, files, picture, width, commands))


def _until_end(reader: Reader, shown: drawn.View, interrupts: Interrupts) -> Look:
    notice, leave_at, stopping = "", float("inf"), False
    while True:
        look = reader.look()
        shown.show(look, notice)
        if look.over or look.gone:
            return look
        if interrupts.presses >= 2 and not stopping:
            control.request_stop(reader.files)
            notice, leave_at, stopping = "stopping", time.monotonic() + STOP_LIMIT, True
        elif interrupts.presses == 1 and not notice:
            notice = f"leaving; Ctrl-C again within {TWICE:g} s stops the sweep"
            leave_at = time.monotonic() + TWICE
        elif interrupts.terminated or interrupts.presses > 2 or time.monotonic() > leave_at:
            return look
        time.sleep(POLL)
