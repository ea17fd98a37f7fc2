"""Schedules as the CSV text of torch.distributed.pipelining: a row for each rank, cells such as ``2F0`` or ``1W3``."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from worker.errors import ScheduleError
from worker.schedule.action import Action, Kind

_CELL = re.compile(r"(\d{1,9})([FBIW])(\d{1,9})", re.ASCII)


def to_csv(ranks: Sequence[Sequence[Action]]) -> str:
    """The text that torch loads as ``compute_only``. It has no word for an update, so updates are left out."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for actions in ranks:
        writer.writerow([str(action) for action in actions if action.kind is not Kind.UPDATE])
    return text.getvalue()


def from_csv(text: str) -> list[list[Action]]:
    """The Actions of every rank; empty cells, which torch writes where a rank waits, are skipped.

    Raises:
        ScheduleError: at a cell that is no computation, with its row and column.
    """
    try:
        rows = list(csv.reader(io.StringIO(text)))
    except csv.Error as error:
        raise ScheduleError(f"not a CSV text: {error}") from None
    return [
        [_action(cell.strip(), row, column) for column, cell in enumerate(cells, 1) if cell.strip()]
        for row, cells in enumerate(rows, 1)
    ]


def _action(cell: str, row: int, column: int) -> Action:
    match = _CELL.fullmatch(cell)
    if match is None:
        raise ScheduleError(
            f"row {row}, column {column}: {cell[:40]!r} is no computation such as 2F0, 2B0, 2I0 or 2W0",
            "communication is worked out from the computations: save the schedule as compute_only",
        )
    return Action(int(match[1]), Kind(match[2]), int(match[3]))
