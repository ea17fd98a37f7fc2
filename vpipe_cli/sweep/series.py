"""Trials as curves over one key: which key that is, and one curve for each combination of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vpipe_cli.sweep.records import Definition
from vpipe_cli.sweep.results import Line, varied
from vpipe_cli.sweep.scope import value


@dataclass(frozen=True)
class Series:
    """One curve. ``positions`` are the values of the key, or their numbers where they are no numbers (``ticks``)."""

    label: str
    positions: list[float]
    lines: list[Line]
    ticks: list[str] | None


def main_axis(definition: Definition, table: Sequence[Line]) -> int:
    """The axis to draw over: of those with numbers the one with most values, else the one with most values."""

    def worth(axis: int) -> tuple[bool, int]:
        values = {line.trial.values[axis] for line in table}
        return all(_number(text) is not None for text in values) and len(values) > 1, len(values)

    return max(range(len(definition.axes)), key=worth)


def series(definition: Definition, table: Sequence[Line], axis: int) -> list[Series]:
    """One curve for each combination of the other axes' values, each in the order of the key."""
    groups: dict[tuple[str, ...], list[Line]] = {}
    others = [at for at in varied(definition) if at != axis]
    for line in table:
        groups.setdefault(tuple(line.trial.values[at] for at in others), []).append(line)
    every = list(dict.fromkeys(line.trial.values[axis] for line in table))
    numbers = [_number(text) for text in every]
    ticks = None if all(number is not None for number in numbers) else every
    place = {
        text: float(at) if ticks or number is None else number
        for at, (text, number) in enumerate(zip(every, numbers, strict=True))
    }
    found = []
    for names, lines in groups.items():
        ordered = sorted(lines, key=lambda line: place[line.trial.values[axis]])
        positions = [place[line.trial.values[axis]] for line in ordered]
        found.append(Series(", ".join(names), positions, ordered, ticks))
    return found


def _number(text: str) -> float | None:
    found = value(text)
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None
