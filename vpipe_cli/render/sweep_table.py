"""Trials as tables: with their results, and before they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vpipe_cli.render import text
from vpipe_cli.render.live import STATE_STYLES
from vpipe_cli.sanitize import clean
from vpipe_cli.sweep import export
from vpipe_cli.sweep.records import Definition, Row
from vpipe_cli.sweep.results import Line, varied
from worker.spec.records import FINAL

if TYPE_CHECKING:
    from rich.table import Table

NUMBERS = {"samples/s": 9, "change": 7, "peak": 8, "idle": 4, "loss": 6}
"""Columns of results, and the characters that each takes."""
WIDEST = 24
"""Characters of one parameter's value that a table shows."""
STYLES = {**STATE_STYLES, "oom": "bold yellow", "waiting": "dim"}


def has_ended(row: Row) -> bool:
    """Whether the trial has a result, or will have none."""
    return row.state in FINAL or row.state == "oom"


def point(definition: Definition, line: Line) -> str:
    """``recompute_ratio=0.5 partition=[4, 6]``."""
    return " ".join(f"{definition.axes[at].name}={clean(line.trial.values[at])}" for at in varied(definition))


def table(definition: Definition, rows: Sequence[Line], width: int) -> Table:
    """One line a trial; where ``width`` is too little, the numbers that matter least are left out."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    drawn.add_column("", justify="right", no_wrap=True)
    shown_axes = varied(definition)
    for at in shown_axes:
        drawn.add_column(definition.axes[at].name, no_wrap=True, max_width=WIDEST, overflow="ellipsis")
    drawn.add_column("state", no_wrap=True)
    kept = _that_fit(definition, rows, width)
    for name in kept:
        drawn.add_column(name, justify="right", no_wrap=True, min_width=NUMBERS[name])
    drawn.add_column("", no_wrap=True)
    for line in rows:
        state, *numbers = export.cells(line)
        shown = [number for name, number in zip(NUMBERS, numbers, strict=True) if name in kept]
        values = [Text(clean(line.trial.values[at])) for at in shown_axes]
        marks = Text(export.marks(line), style="bold green")
        drawn.add_row(str(line.row.number), *values, Text(state, style=STYLES.get(state, "cyan")), *shown, marks)
    return drawn


def _that_fit(definition: Definition, rows: Sequence[Line], width: int) -> list[str]:
    """The numbers that fit beside the parameters."""
    taken = 4 + 11 + 2  # number, state, marks
    for at in varied(definition):
        longest = max([len(definition.axes[at].name), *(len(line.trial.values[at]) for line in rows)])
        taken += 2 + min(WIDEST, longest)
    kept = list(NUMBERS)
    for name in ("idle", "loss", "change"):
        if taken + sum(2 + NUMBERS[each] for each in kept) <= width:
            break
        kept.remove(name)
    return kept


def plan(definition: Definition, rows: Sequence[Line], width: int) -> Table:
    """What would run, as ``--dry-run`` shows it."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    drawn.add_column("", justify="right", no_wrap=True)
    shown_axes = varied(definition)
    for at in shown_axes:
        drawn.add_column(definition.axes[at].name, no_wrap=True, max_width=WIDEST, overflow="ellipsis")
    for name in ("state", "devices", "layers", "step time", "memory per stage", ""):
        drawn.add_column(name, overflow="fold")
    for line in rows:
        expected = line.trial.prediction
        step = "-" if expected.step_seconds is None else text.span(expected.step_seconds)
        memory = " ".join(map(text.size, expected.memory_bytes)) or "-"
        note = "will not fit" if expected.fits is False else "P" if line.is_choice else ""
        partition = " ".join(map(str, line.trial.partition))
        state = line.row.state if has_ended(line.row) else "new" if not line.row.run else "running"
        cells = [state, str(len(line.trial.slots)), partition, step, memory, note]
        drawn.add_row(
            str(line.trial.number),
            *(Text(clean(value)) for value in [*(line.trial.values[at] for at in shown_axes), *cells]),
        )
    return drawn
