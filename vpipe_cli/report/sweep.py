"""Everything a report shows of a sweep, read from its folder and from the runs of its trials, as JSON-able values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vpipe_cli.render.sweep import planner
from vpipe_cli.report.collect import numbers
from vpipe_cli.runs import store as runs
from vpipe_cli.runs.job import placed_job
from vpipe_cli.sanitize import clean
from vpipe_cli.sweep import export
from vpipe_cli.sweep.records import Definition
from vpipe_cli.sweep.results import Line, label, varied
from vpipe_cli.sweep.series import main_axis, series
from vpipe_cli.sweep.watch import Look
from worker.errors import NotFinished, RunNotFound

DRAWN = 12
"""Trials up to which the loss of each is drawn, and combinations of other keys that have a curve."""
TOLD = 200
"""Trials up to which a page carries the numbers of each run."""
POINTS = 100


def collect(look: Look, cluster: str) -> dict[str, Any]:
    """The sweep as it stands; ``cluster`` is the text of the file that it varies."""
    definition, table = look.definition, look.table
    return {
        "id": definition.sweep,
        "state": look.state,
        "why": clean(look.gone or look.over.partition(": ")[2]),
        "created": definition.created,
        "done": look.done,
        "command": clean(f"vpipe {definition.command}") if definition.command else "",
        "keys": [definition.axes[at].name for at in varied(definition)],
        "planner": planner(table, definition),
        "curves": _curves(definition, table),
        "trials": [_trial(definition, line, told=number < TOLD) for number, line in enumerate(table)],
        "drawn": DRAWN,
        "config": cluster,
    }


def _trial(definition: Definition, line: Line, told: bool) -> dict[str, Any]:
    """A trial's row, and what its run measured, where its folder is still there."""
    found = export.document(definition, line)
    values = [clean(line.trial.values[at]) for at in varied(definition)]
    found |= {"values": values, "label": clean(label(definition, line.trial)), "cause": clean(line.row.cause)}
    if told and line.row.run:
        try:
            run = runs.find(line.row.run)
            plan = {"plan": {"predicted": _predicted(line)}}
            found |= {**numbers(run, placed_job(run), POINTS), **plan, "folder": str(run.folder)}
        except (NotFinished, RunNotFound):
            pass
    return found


def _predicted(line: Line) -> dict[str, Any]:
    return {"memory_bytes": line.trial.prediction.memory_bytes}


def _curves(definition: Definition, table: Sequence[Line]) -> dict[str, Any] | None:
    """Step time and peak memory over the key with most values, a curve for each combination of the others."""
    measured = [line for line in table if line.row.state == "succeeded" and line.row.step_seconds and line.row.peak]
    if not measured:
        return None
    axis = main_axis(definition, measured)
    found = series(definition, measured, axis)[:DRAWN]
    return {
        "along": definition.axes[axis].name,
        "names": found[0].ticks,
        "time": [
            {"name": one.label, "points": _points(one.positions, [line.row.step_seconds or 0.0 for line in one.lines])}
            for one in found
        ],
        "memory": [
            {"name": one.label, "points": _points(one.positions, [float(line.row.peak or 0) for line in one.lines])}
            for one in found
        ],
    }


def _points(positions: Sequence[float], values: Sequence[float]) -> list[tuple[float, float]]:
    return list(zip(positions, values, strict=True))
