"""A curve in a few lines of text: each character is a field of 2 x 4 dots."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from vpipe_cli.render import text

BLANK = 0x2800
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bits of a braille character's dots, row by row."""
LABEL = 7
"""Characters of a number at the left."""


def curve(points: Sequence[tuple[float, float]], base: float | None, width: int, height: int) -> list[str]:
    """Values over steps, labelled: at the left the greatest and the least, below the first and the last step.

    Args:
        base: a value to draw across, where it lies in the range of the others or not far from it.
    """
    columns, rows = width - LABEL - 2, height - 1
    if not points or columns < 8 or rows < 2:
        return []
    values = _spread([value for _, value in points], 2 * columns)
    low, high = min(values), max(values)
    if base is not None and high >= base >= low - (high - low):
        low = min(low, base)
    else:
        base = None
    field = [[0] * columns for _ in range(rows)]
    _plot(field, values, low, high)
    lines = ["".join(chr(BLANK + bits) if bits else " " for bits in row) for row in field]
    labels = {0: text.loss(high), rows - 1: text.loss(low)} if high > low else {0: text.loss(high)}
    if base is not None:
        at = _level(base, low, high, rows * 4) // 4
        lines[at] = "".join("╌" if sign == " " else sign for sign in lines[at])
        labels[at] = "base"
    first, last = str(round(points[0][0])), f"step {round(points[-1][0])}"
    foot = f"{'':{LABEL}} └{first}{'─' * max(1, columns - len(first) - len(last))}{last}"
    return [*(f"{labels.get(row, ''):>{LABEL}} │{line}" for row, line in enumerate(lines)), foot[:width]]


def _spread(values: Sequence[float], count: int) -> list[float]:
    """Just so many values: means of neighbours where there are more, the same ones again where there are fewer."""
    cuts = [at * len(values) // count for at in range(count + 1)]
    pieces = [values[low : max(low + 1, high)] for low, high in pairwise(cuts)]
    return [sum(piece) / len(piece) for piece in pieces]


def _plot(field: list[list[int]], values: Sequence[float], low: float, high: float) -> None:
    """Set the dots of a line through the values, one for each column of dots."""
    before: int | None = None
    for x, value in enumerate(values):
        y = _level(value, low, high, 4 * len(field))
        joined = (y,) if before is None else range(min(y, before + 1), max(y, before - 1) + 1)
        for dot in joined:
            field[dot // 4][x // 2] |= DOTS[dot % 4][x % 2]
        before = y


def _level(value: float, low: float, high: float, count: int) -> int:
    """The row from the top, of ``count``, in which a value lies."""
    share = (value - low) / (high - low) if high > low else 0.5
    return min(count - 1, max(0, round((1 - share) * (count - 1))))
