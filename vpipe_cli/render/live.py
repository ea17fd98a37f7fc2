"""The live view: one frame of a running job, as large as the terminal, drawn anew at each look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpipe_cli.render import logs, text
from vpipe_cli.runs.logs import Record
from vpipe_cli.runs.metrics import Progress, RankProgress
from vpipe_cli.sanitize import clean
from worker.spec.records import FINAL, State

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

STATE_STYLES = {
    "succeeded": "green",
    "running": "bold green",
    "failed": "bold red",
    "lost": "bold red",
    "stopped": "yellow",
    "unknown": "yellow",
}
QUIET = 10.0
"""Seconds without a step after which the view says so."""
LEAST_LOG = 6
"""Log lines that are shown even if ranks must be left out for them."""
NARROW = 72
"""Columns below which times are left out."""


@dataclass(frozen=True)
class Frame:
    """All that is known of a run at one moment. ``seconds`` since its start; ``now`` is Unix time."""

    run: str
    state: State
    attempt: int
    seconds: float
    now: float
    progress: Progress
    notice: str = ""
    hint: str = ""


def state_text(state: State) -> Text:
    """A state in its colour."""
    from rich.text import Text

    return Text(state, style=STATE_STYLES.get(state, "cyan"))


def frame(now: Frame, records: Sequence[Record], heads: dict[int, str], width: int, height: int) -> RenderableType:
    """The view of ``width`` x ``height`` characters: numbers above, the newest log lines below."""
    from rich.console import Group
    from rich.rule import Rule

    ranks = now.progress.ranks
    rows = max(1, min(len(ranks), height - LEAST_LOG - 5))
    above: list[RenderableType] = [_headline(now), _bar(now), _loss(now.progress, width)]
    above.append(_ranks(ranks[:rows], narrow=width < NARROW))
    if rows < len(ranks):
        above.append(_line((f"... and {len(ranks) - rows} more ranks", "dim")))
    title = _line((now.notice, "bold yellow")) if now.notice else _line((now.hint, "dim"))
    above.append(Rule(title, align="right", style="dim"))
    room = height - (5 + rows + (rows < len(ranks)))
    below = [logs.line(record, heads[record.source.rank]) for record in list(records)[-room:]] if room > 0 else []
    return Group(*above, *below)


def _line(*parts: tuple[str, str] | str | Text) -> Text:
    from rich.text import Text

    line = Text.assemble(*parts)
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _headline(now: Frame) -> Text:
    parts: list[tuple[str, str] | str | Text] = [(now.run, "bold"), "  ", state_text(now.state)]
    if now.attempt > 1:
        parts.append(f"  attempt {now.attempt}")
    parts.append((f"  {text.clock(now.seconds)}", "dim"))
    if quiet := _quiet(now):
        parts.append((f"  {quiet}", "bold yellow"))
    return _line(*parts)


def _quiet(now: Frame) -> str:
    """Says that a run which has made steps makes none any more."""
    if now.state != "running" or now.progress.time is None:
        return ""
    silent = now.now - now.progress.time
    return f"no step for {text.clock(silent)}" if silent > QUIET else ""


def _bar(now: Frame) -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    progress = now.progress
    share = progress.step / progress.steps
    eta = f"  eta {text.clock(progress.eta)}" if progress.eta is not None and now.state not in FINAL else ""
    grid.add_row(
        ProgressBar(total=progress.steps, completed=progress.step),
        _line((f"{progress.step}/{progress.steps}", "bold"), f" {text.percent(share)}{eta}"),
    )
    return grid


def _loss(progress: Progress, width: int) -> Text:
    if progress.loss is None:
        return _line(("no step yet", "dim"))
    parts: list[tuple[str, str] | str] = ["loss ", (text.loss(progress.loss), "bold"), " "]
    behind = f"  {text.rate(progress.samples_per_second)} samples/s"
    if progress.baseline_loss is not None:
        behind = f"  baseline {text.loss(progress.baseline_loss)}{behind}"
    room = width - sum(len(part if isinstance(part, str) else part[0]) for part in parts) - len(behind)
    return _line(*parts, (text.sparkline(progress.losses, max(0, min(room, 60))), "cyan"), behind)


def _ranks(ranks: Sequence[RankProgress], narrow: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("stage", "rank", "device", "layers"):
        table.add_column(name)
    table.add_column("idle", no_wrap=True, min_width=11)
    table.add_column("memory", justify="right", no_wrap=True, min_width=8)
    for name in () if narrow else ("forward", "backward", "update"):
        table.add_column(name, justify="right", no_wrap=True, min_width=7)
    several = len({rank.placement.host for rank in ranks}) > 1
    for rank in ranks:
        cells = _cells(rank, several)[: len(table.columns)]
        table.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in cells))
    return table


def _cells(rank: RankProgress, several_hosts: bool) -> list[str]:
    placed = rank.placement
    device = clean(f"{placed.host} {placed.device}" if several_hosts else placed.device)
    stages = ",".join(map(str, rank.stages))
    layers = ",".join(f"{these[0]}-{these[-1]}" if len(these) > 1 else f"{these[0]}" for these in rank.layers)
    cells = [stages, str(placed.rank), device, layers]
    if (timing := rank.timing) is None:
        return cells
    idle = f"{text.bar(timing.idle_share, 6)} {text.percent(timing.idle_share):>4}"
    times = [text.span(seconds) for seconds in (timing.forward, timing.backward, timing.update)]
    return [*cells, idle, text.size(timing.memory), *times]
