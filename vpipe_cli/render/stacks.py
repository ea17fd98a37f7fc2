"""Stacks of ranks: a table of where each is, then each stack in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vpipe_cli.render.logs import colour
from vpipe_cli.runs.stacks import Stack
from vpipe_cli.sanitize import clean

if TYPE_CHECKING:
    from rich.console import RenderableType


def stacks(found: Sequence[Stack]) -> RenderableType:
    """All of them, the innermost call first."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("stage", "rank", "host", "process", "at"):
        table.add_column(name, overflow="fold")
    for each in found:
        process = "-" if each.pid is None else str(each.pid)
        at = f"{each.state}: {each.at}" if each.state and each.at else each.state or each.at
        table.add_row(*map(Text, (str(each.stage), str(each.rank), clean(each.host), process, clean(at))))
    whole: list[RenderableType] = [table]
    for each in found:
        if each.stack:
            head = Text(f"\nrank {each.rank} (stage {each.stage}, {clean(each.host)})", style=colour(each.rank))
            whole += [head, *(Text(clean(line)) for line in each.stack.splitlines())]
    return Group(*whole)
