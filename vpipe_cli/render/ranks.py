"""The ranks of a running job as a pipeline: one line each, of as many columns as there is room for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpipe_cli.render import text
from vpipe_cli.runs.metrics import RankProgress, Timing
from vpipe_cli.sanitize import clean

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

GAP = 2
"""Blanks between two columns."""
BAR = 6
SLOW_STYLE = "yellow"
NOW = 24
"""Least room for what a rank does at the moment; it takes what the other columns leave."""
BY_WORTH = ("stage", "busy", "device", "memory", "in flight", "versions", "rank", "layers", "time")
"""Columns, those last that are left out first."""
PARTS = ("forward", "backward", "update")
"""Stand in the place of ``time`` where there is room."""


@dataclass(frozen=True)
class Column:
    """A column: its least width, whether its cells are numbers, and a rank's cell."""

    width: int
    is_number: bool
    cell: Callable[[RankProgress], str]


def table(ranks: Sequence[RankProgress], every: Sequence[RankProgress], width: int, doing: Mapping[int, str]) -> Table:
    """One line for each of ``ranks``, joined in the order of the stages.

    Args:
        every: all ranks of the job.
        doing: what a rank does at this moment, of those that say it; shown where there is room.
    """
    from rich.table import Table
    from rich.text import Text

    columns = _columns(several_hosts=len({rank.placement.host for rank in every}) > 1)
    shown = _that_fit(columns, ranks, width)
    drawn = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    for name in shown:
        one = columns[name]
        drawn.add_column(
            name, justify="right" if one.is_number else "left", no_wrap=True, min_width=min(one.width, width)
        )
    left = width - sum(GAP + _width(name, columns, ranks) for name in shown)
    if doing and left >= NOW:
        drawn.add_column("now", no_wrap=True, overflow="ellipsis", max_width=left)
    for rank in ranks:
        cells = [columns[name].cell(rank) for name in shown]
        cells[0] = f"{_link(rank.placement.rank, len(every))}{cells[0]}"
        if doing and left >= NOW:
            cells.append(clean(doing.get(rank.placement.rank, "")))
        style = SLOW_STYLE if rank.slow else ""
        drawn.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in cells), style=style)
    return drawn


def slow_line(ranks: Sequence[RankProgress]) -> Text | None:
    """Names the slow ranks, the worst first; None where there is none."""
    from rich.text import Text

    slow = sorted((rank for rank in ranks if rank.slow), key=lambda rank: -(rank.slow or 0.0))
    if not slow:
        return None
    named = [f"rank {rank.placement.rank} (stage {_stages(rank)}) {rank.slow:.1f}x the others" for rank in slow]
    more = f", and {len(slow) - 3} more" if len(slow) > 3 else ""
    return Text(f"slow: {', '.join(named[:3])}{more}", style=f"bold {SLOW_STYLE}", no_wrap=True, overflow="ellipsis")


def chosen(ranks: Sequence[RankProgress], room: int) -> list[RankProgress]:
    """As many ranks as there is room for, the slow ones among them, in their order."""
    order = sorted(range(len(ranks)), key=lambda at: (ranks[at].slow is None, at))
    return [ranks[at] for at in sorted(order[:room])]


def _columns(several_hosts: bool) -> dict[str, Column]:
    def device(rank: RankProgress) -> str:
        placed = rank.placement
        return clean(f"{placed.host} {placed.device}" if several_hosts else placed.device)

    return {
        "stage": Column(5, False, _stages),
        "rank": Column(4, False, lambda rank: str(rank.placement.rank)),
        "device": Column(6, False, device),
        "layers": Column(6, False, _layers),
        "busy": Column(BAR + 5, False, _timed(_busy)),
        "in flight": Column(9, True, _timed(lambda timing: str(timing.in_flight))),
        "versions": Column(8, True, _timed(lambda timing: str(timing.versions))),
        "memory": Column(7, True, _timed(lambda timing: text.size(timing.memory))),
        "time": Column(7, True, _timed(lambda timing: text.span(timing.busy))),
        "forward": Column(7, True, _timed(lambda timing: text.span(timing.forward))),
        "backward": Column(8, True, _timed(lambda timing: text.span(timing.backward))),
        "update": Column(7, True, _timed(lambda timing: text.span(timing.update))),
    }


def _timed(cell: Callable[[Timing], str]) -> Callable[[RankProgress], str]:
    return lambda rank: "" if rank.timing is None else cell(rank.timing)


def _busy(timing: Timing) -> str:
    share = 1 - timing.idle_share
    return f"{text.bar(share, BAR)} {text.percent(share):>4}"


def _stages(rank: RankProgress) -> str:
    return ",".join(map(str, rank.stages))


def _layers(rank: RankProgress) -> str:
    return ",".join(f"{these[0]}-{these[-1]}" if len(these) > 1 else f"{these[0]}" for these in rank.layers)


def _link(rank: int, count: int) -> str:
    """The line that joins the stages from the first to the last."""
    if count == 1:
        return "─ "
    return "┌ " if rank == 0 else "└ " if rank == count - 1 else "│ "


def _width(name: str, columns: Mapping[str, Column], ranks: Sequence[RankProgress]) -> int:
    lead = 2 if name == "stage" else 0
    return max([columns[name].width, *(lead + len(columns[name].cell(rank)) for rank in ranks)])


def _that_fit(columns: Mapping[str, Column], ranks: Sequence[RankProgress], width: int) -> list[str]:
    """The columns to show, in their order."""

    def taken(names: Sequence[str]) -> int:
        return sum(GAP + _width(name, columns, ranks) for name in names) - GAP

    kept = list(BY_WORTH)
    while len(kept) > 2 and taken(kept) > width:
        kept.pop()
    apart = [name for name in kept if name != "time"] + list(PARTS)
    if len(kept) == len(BY_WORTH) and taken(apart) <= width:
        kept = apart
    return [name for name in columns if name in kept]
