"""Plots of a sweep in the terminal: bars for few trials, a field of points for many."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vpipe_cli.render import text
from vpipe_cli.sanitize import clean
from vpipe_cli.sweep.records import Definition
from vpipe_cli.sweep.results import Line, label, varied

FEW = 12
"""Trials up to which each has a bar of its own."""
ROWS = 12
LABEL = 26


def plots(definition: Definition, table: Sequence[Line], width: int) -> list[str]:
    """Step time and peak memory of the trials that have ended well, as lines of text; none for fewer than two."""
    ended = [line for line in table if line.row.state == "succeeded" and line.row.step_seconds and line.row.peak]
    if len(ended) < 2:
        return []
    if len(ended) > FEW:
        return field(ended, width)
    names = ", ".join(definition.axes[at].name for at in varied(definition))
    labels = [clean(label(definition, line.trial)) for line in ended]
    times = bars(labels, ended, lambda line: line.row.step_seconds or 0.0, text.span, width)
    memory = bars(labels, ended, lambda line: float(line.row.peak or 0), text.size, width)
    heads = [f"{what}, by {names}"[:width] for what in ("time of a step", "peak memory of the worst stage")]
    return [heads[0], *times, "", heads[1], *memory]


def bars(
    labels: Sequence[str],
    lines: Sequence[Line],
    value_of: Callable[[Line], float],
    shown: Callable[[float], str],
    width: int,
) -> list[str]:
    """One bar a trial, from zero, so that lengths compare."""
    labels = [label if len(label) <= LABEL else label[: LABEL - 1] + "…" for label in labels]
    values = [value_of(line) for line in lines]
    wide, most = max(map(len, labels)), max(values)
    room = max(8, width - wide - 14)
    return [
        f"  {label:{wide}}  {text.bar(value / most, room).rstrip() or text.EIGHTHS[1]} {shown(value)}"
        for label, value in zip(labels, values, strict=True)
    ]


def field(lines: Sequence[Line], width: int) -> list[str]:
    """Throughput over peak memory: ``*`` on the Pareto front, ``P`` the planner's choice, ``.`` the others."""
    memory = [float(line.row.peak or 0) for line in lines]
    rates = [line.row.samples_per_second or 0.0 for line in lines]
    columns = max(20, min(width, 80) - 12)
    cells = [[" "] * columns for _ in range(ROWS)]
    order = sorted(zip(lines, memory, rates, strict=True), key=lambda each: (each[0].is_choice, each[0].is_pareto))
    for line, size, rate in order:
        column = _place(size, min(memory), max(memory), columns)
        row = ROWS - 1 - _place(rate, min(rates), max(rates), ROWS)
        cells[row][column] = "P" if line.is_choice else "*" if line.is_pareto else "·"
    left = [text.rate(max(rates)), *[""] * (ROWS - 2), text.rate(min(rates))]
    drawn = [f"{label:>8} |{''.join(row)}" for label, row in zip(left, cells, strict=True)]
    low, high = text.size(min(memory)), text.size(max(memory))
    foot = f"{'':9}+{'-' * columns}", f"{'':10}{low}{high:>{columns - len(low)}}"
    return ["samples/s over peak memory of the worst stage", *drawn, *foot]


def _place(value: float, low: float, high: float, count: int) -> int:
    return round((value - low) / (high - low) * (count - 1)) if high > low else (count - 1) // 2
