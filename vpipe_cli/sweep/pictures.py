"""sweep.png: step time and peak memory over the swept key, and the one against the other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from vpipe_cli.sweep.files import SweepFiles
from vpipe_cli.sweep.records import Definition
from vpipe_cli.sweep.results import Line, label, varied
from vpipe_cli.sweep.series import Series, main_axis, series

MIB = 2**20
_MOST_LINES = 8


def ensure(files: SweepFiles, definition: Definition, table: Sequence[Line]) -> str:
    """Draw it anew. The picture's path, or why there is none."""
    measured = [line for line in table if line.row.state == "succeeded" and line.row.step_seconds and line.row.peak]
    if not measured:
        return "none: no trial has ended well"
    try:
        picture = draw(definition, measured)
    except ImportError:
        return "none: matplotlib is not installed (pip install 'vpipe[worker]')"
    aside = files.picture.with_name(f".{files.picture.name}.{os.getpid()}")
    try:
        aside.write_bytes(picture)
        os.replace(aside, files.picture)
    except OSError as error:
        return f"none: {error}"
    return str(files.picture)


def draw(definition: Definition, measured: Sequence[Line]) -> bytes:
    """A PNG of trials that have ended well. Raises ImportError."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), dpi=110, layout="constrained")
    times, memory, trade = figure.subplots(1, 3)
    axis = main_axis(definition, measured)
    found = series(definition, measured, axis)
    shown = found[:_MOST_LINES]
    _lines(times, shown, [[(line.row.step_seconds or 0) * 1e3 for line in one.lines] for one in shown])
    _lines(memory, shown, [[(line.row.peak or 0) / MIB for line in one.lines] for one in shown])
    name = definition.axes[axis].name
    times.set(xlabel=name, ylabel="time of a step (ms)", title="step time")
    memory.set(xlabel=name, ylabel="peak memory of the worst stage (MiB)", title="memory")
    _trade(trade, definition, measured)
    if len(shown) > 1:
        left = f" (of {len(found)})" if len(found) > len(shown) else ""
        times.legend(
            title=", ".join(definition.axes[at].name for at in varied(definition) if at != axis) + left, fontsize=8
        )
    figure.suptitle(definition.sweep)
    out = BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _lines(axes: Any, shown: Sequence[Series], values: Sequence[Sequence[float]]) -> None:
    for one, heights in zip(shown, values, strict=True):
        axes.plot(one.positions, heights, marker="o", linewidth=1.5, markersize=5, label=one.label)
    if shown and shown[0].ticks is not None:
        axes.set_xticks(range(len(shown[0].ticks)), shown[0].ticks, rotation=20)
    axes.grid(alpha=0.25)
    low, high = axes.get_ylim()
    axes.set_ylim(max(0, low - 0.05 * (high - low)), high + 0.05 * (high - low))


def _trade(axes: Any, definition: Definition, measured: Sequence[Line]) -> None:
    """Throughput over memory: up and to the left is better."""
    for line in measured:
        point = (line.row.peak or 0) / MIB, line.row.samples_per_second or 0
        colour = "tab:blue" if line.is_pareto else "tab:gray"
        axes.plot(*point, marker="s" if line.is_choice else "o", color=colour, markersize=7, linestyle="")
        if line.is_pareto or line.is_choice or len(measured) <= 12:
            name = label(definition, line.trial) + (" (planner)" if line.is_choice else "")
            axes.annotate(name, point, xytext=(5, 5), textcoords="offset points", fontsize=7)
    front = sorted((line.row.peak or 0, line.row.samples_per_second or 0) for line in measured if line.is_pareto)
    axes.plot([memory / MIB for memory, _ in front], [rate for _, rate in front], color="tab:blue", linewidth=1)
    axes.set(xlabel="peak memory of the worst stage (MiB)", ylabel="samples/s", title="trade-off; line: Pareto front")
    axes.margins(0.22)
    axes.grid(alpha=0.25)
