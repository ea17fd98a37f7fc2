"""Runs as a table, and one run with its ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vpipe_cli.render import text
from vpipe_cli.render.live import state_text
from vpipe_cli.runs.orphans import Orphan
from vpipe_cli.runs.outcome import Outcome, RankLine
from vpipe_cli.sanitize import clean

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

NUMBERS = 45
"""Columns that the state and the numbers of a run take at most."""


def runs(listed: Sequence[Outcome], now: float, width: int) -> Table:
    """Runs as ``vpipe ps`` lists them at Unix time ``now``; without their folders where ``width`` is too little."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("run", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in ("step", "loss", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    if with_folder := width >= NUMBERS + max((len(run.run) + len(str(run.folder)) for run in listed), default=0):
        table.add_column("folder", no_wrap=True)
    for run in listed:
        numbers = [f"{run.step}/{run.steps}", text.loss(run.loss), text.age(now - run.started)]
        folder = [clean(str(run.folder))] if with_folder else []
        table.add_row(Text(run.run), state_text(run.state), *map(Text, [*numbers, *folder]))
    return table


def run(stands: Outcome, now: float) -> RenderableType:
    """One run that has not ended, as ``vpipe status`` shows it."""
    from rich.console import Group
    from rich.text import Text

    share = f" ({text.percent(stands.step / stands.steps)})" if stands.steps else ""
    progress = f"  step {stands.step}/{stands.steps}{share}  loss {text.loss(stands.loss)}"
    age = f"  started {text.age(now - stands.started)} ago"
    headline = Text.assemble("run ", stands.run, " ", state_text(stands.state), progress, age)
    queue = [Text(f"  slurm    {clean(stands.queue)}")] if stands.queue else []
    return Group(headline, Text(f"  folder   {clean(str(stands.folder))}"), *queue, "", ranks(stands.ranks))


def ranks(listed: Sequence[RankLine]) -> Table:
    """One line a rank: where it runs and how it is, or how it ended."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 0, 0, 2), header_style="dim")
    for name in ("stage", "rank"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("host", "device", "state", "exit"):
        table.add_column(name, overflow="fold")
    for rank in listed:
        place = [str(rank.stage), str(rank.rank), clean(rank.host), clean(rank.device)]
        table.add_row(*map(Text, place), state_text(rank.state), Text(clean(rank.cause)))
    return table


def orphans(listed: Sequence[Orphan]) -> Table:
    """Processes that outlived their runs."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("host", "process", "user", "run", "rank", "command"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for each in listed:
        rank = "-" if each.rank is None else str(each.rank)
        cells = (each.host, str(each.pid), each.user, each.run, rank, each.command)
        table.add_row(*(Text(clean(cell)) for cell in cells))
    return table
