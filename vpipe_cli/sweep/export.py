"""Results of a sweep as files that other programs read: JSON lines, CSV, and a Markdown table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

from vpipe_cli.render import text
from vpipe_cli.sweep.files import SweepFiles
from vpipe_cli.sweep.records import Definition
from vpipe_cli.sweep.results import Line, launch_command
from worker.spec.files import write_atomic


def write_all(files: SweepFiles, definition: Definition, table: Sequence[Line]) -> None:
    """Write every form into the sweep's folder, whole each time."""
    for form, made in FORMS.items():
        write_atomic(files.results(form), made(definition, table))


def document(definition: Definition, line: Line) -> dict[str, Any]:
    """A trial as one flat JSON object."""
    row = line.row
    values = {axis.key: value for axis, value in zip(definition.axes, line.trial.values, strict=True)}
    return {
        "trial": row.number, "identity": row.identity, "parameters": values, "state": row.state,
        "samples_per_second": row.samples_per_second, "change": line.change, "step_seconds": row.step_seconds,
        "peak_memory_bytes": row.peak, "stage_memory_bytes": row.memory_bytes, "idle_share": row.idle_share,
        "stage_idle": row.idle, "loss": row.loss, "steps": row.step, "measured_steps": row.measured_steps,
        "seconds": row.seconds, "pareto": line.is_pareto, "planner": line.is_choice,
        "stage_layers": line.trial.partition, "stage_recompute_ratio": line.trial.recompute_ratio,
        "predicted_step_seconds": line.trial.prediction.step_seconds,
        "predicted_memory_bytes": line.trial.prediction.memory_bytes,
        "stage": row.stage, "cause": row.cause, "run": row.run, "reused": row.reused,
        "command": launch_command(definition, line.trial),
    }  # fmt: skip


def jsonl(definition: Definition, table: Sequence[Line]) -> str:
    """One JSON object a line, one line a trial."""
    return "".join(json.dumps(document(definition, line)) + "\n" for line in table)


def as_csv(definition: Definition, table: Sequence[Line]) -> str:
    """A header, then a line a trial; each parameter is a column, lists are JSON."""
    out = io.StringIO()
    rows = [document(definition, line) for line in table]
    flat = [{**row.pop("parameters"), **row} for row in rows]
    writer = csv.DictWriter(out, list(flat[0]) if flat else [], lineterminator="\n")
    writer.writeheader()
    for row in flat:
        writer.writerow({key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()})
    return out.getvalue()


def markdown(definition: Definition, table: Sequence[Line]) -> str:
    """The table as people read it, and the command of each row."""
    head = [*(axis.name for axis in definition.axes), "state", "samples/s", "change", "peak memory", "idle", "loss", ""]
    body = [[*line.trial.values, *cells(line), marks(line)] for line in table]
    rows = [head, ["---"] * len(head), *body]
    drawn = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
    commands = "\n".join(launch_command(definition, line.trial) for line in table)
    return f"# {definition.sweep}\n\n{drawn}\n\n{LEGEND}\n\n```sh\n{commands}\n```\n"


LEGEND = "change: against the first trial; *: none is better in both throughput and memory; P: the planner's choice"


def cells(line: Line) -> list[str]:
    """State, throughput, change, peak memory of the worst stage, mean idle share, loss."""
    row = line.row
    return [
        row.state, text.rate(row.samples_per_second), "-" if line.change is None else f"{line.change:+.1%}",
        "-" if row.peak is None else text.size(row.peak),
        "-" if row.idle_share is None else text.percent(row.idle_share), text.loss(row.loss),
    ]  # fmt: skip


def marks(line: Line) -> str:
    """``*`` on the Pareto front, ``P`` the planner's choice."""
    return ("*" if line.is_pareto else "") + ("P" if line.is_choice else "")


FORMS: dict[str, Callable[[Definition, Sequence[Line]], str]] = {"jsonl": jsonl, "csv": as_csv, "md": markdown}
"""By the ending of the file."""
