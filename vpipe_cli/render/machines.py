"""Ranks and their machines as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vpipe_cli.machines import Slot
from vpipe_cli.sanitize import clean
from vpipe_cli.transport.target import Target

if TYPE_CHECKING:
    from rich.table import Table


def machines(slots: Sequence[Slot], ways: Mapping[str, Target | None]) -> Table:
    """One line a rank; the way to a machine, None for this one, stands with its first rank."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("rank", justify="right", no_wrap=True)
    for name in ("host", "device", "reached as"):
        table.add_column(name, overflow="fold")
    told: set[str] = set()
    for rank, slot in enumerate(slots):
        way = "" if slot.host in told else route(ways[slot.host])
        told.add(slot.host)
        table.add_row(*map(Text, [str(rank), clean(slot.host), slot.device, clean(way)]))
    return table


def route(target: Target | None) -> str:
    """``ana@10.0.0.3:22 through login.lab``."""
    if target is None:
        return "this machine"
    hops = []
    via = target.via
    while via:
        hops.append(via.host)
        via = via.via
    through = [f"through {', then '.join(reversed(hops))}"] if hops else []
    through += ["by your ProxyCommand"] if target.command else []
    return " ".join([f"{target.user}@{target.address}:{target.port}", *through])
