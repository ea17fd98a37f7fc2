"""What differs between two runs, as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vpipe_cli.render import text
from vpipe_cli.runs.compare import Change
from vpipe_cli.sanitize import clean

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = {
    "loss": text.loss, "samples_per_second": text.rate, "seconds": text.clock, "peak_memory_bytes": text.size,
    "idle_share": text.percent,
}  # fmt: skip


def table(changes: Sequence[Change], a: str, b: str) -> Table:
    """One line a difference, grouped by what it is a difference of."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("", "", a, b, ""):
        drawn.add_column(name, overflow="fold")
    before = ""
    for change in changes:
        share = "" if change.share is None else f"{change.share:+.1%}"
        cells = [change.key, _shown(change.key, change.a), _shown(change.key, change.b), share]
        drawn.add_row(Text(change.part if change.part != before else "", style="dim"), *map(Text, cells))
        before = change.part
    return drawn


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key in SHOWN and isinstance(value, int | float):
        return SHOWN[key](value)
    if key == "weights_sha256":
        return str(value)[:16]
    return clean(value if isinstance(value, str) else json.dumps(value))
