"""The live view: one frame of a running job, as large as the terminal, drawn anew at each look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vpipe_cli.render import chart, logs, text
from vpipe_cli.render import ranks as drawn
from vpipe_cli.runs.logs import Record
from vpipe_cli.runs.metrics import Progress
from worker.spec.records import FINAL, State

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.rule import Rule
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
LEAST_CHART = 4
"""Lines of the loss curve that are worth looking at."""


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
    doing: Mapping[int, str] = field(default_factory=dict)
    """What a rank does at this moment, of those that say it here."""


def state_text(state: State) -> Text:
    """A state in its colour."""
    from rich.text import Text

    return Text(state, style=STATE_STYLES.get(state, "cyan"))


def frame(now: Frame, records: Sequence[Record], heads: dict[int, str], width: int, height: int) -> RenderableType:
    """The view of ``width`` x ``height`` characters: numbers above, the newest log lines below."""
    from rich.console import Group

    above: list[RenderableType] = [_headline(now), _bar(now), _loss(now.progress, width)]
    above += _pipeline(now, width, height - LEAST_LOG - 4)
    above.append(_rule(now))
    room = height - len(above) - _rows(above)
    below = [logs.line(record, heads[record.source.rank]) for record in list(records)[-room:]] if room > 0 else []
    return Group(*above, *below)


def whole(now: Frame, width: int, height: int) -> RenderableType:
    """The view without a log, with the loss as a curve in its room: what ``vpipe top`` draws."""
    from rich.console import Group
    from rich.text import Text

    least = LEAST_CHART if height > 20 else 0
    above: list[RenderableType] = [_headline(now), _bar(now), _numbers(now.progress)]
    above += _pipeline(now, width, height - least - 4)
    room = height - len(above) - _rows(above) - 1
    progress = now.progress
    lines = chart.curve(progress.losses, progress.baseline_loss, width, room) if room >= LEAST_CHART else []
    return Group(
        *above,
        *(Text(line, style="cyan", no_wrap=True) for line in lines),
        *([_rule(now)] if now.notice or now.hint else []),
    )


def _pipeline(now: Frame, width: int, room: int) -> list[RenderableType]:
    """The ranks in at most ``room`` lines, their heads included; those that are slow are named below."""
    ranks = now.progress.ranks
    slow = drawn.slow_line(ranks)
    room -= 1 + (slow is not None)
    shown = drawn.chosen(ranks, max(1, room if len(ranks) <= room else room - 1))
    parts: list[RenderableType] = [drawn.table(shown, ranks, width, now.doing)]
    if len(shown) < len(ranks):
        parts.append(_line((f"... and {len(ranks) - len(shown)} more ranks", "dim")))
    return parts + ([slow] if slow else [])


def _rows(parts: Sequence[RenderableType]) -> int:
    """Lines that parts take beyond one each: those of the table below its heads."""
    from rich.table import Table

    return sum(part.row_count for part in parts if isinstance(part, Table) and part.show_header)


def _rule(now: Frame) -> Rule:
    from rich.rule import Rule

    title = _line((now.notice, "bold yellow")) if now.notice else _line((now.hint, "dim"))
    return Rule(title, align="right", style="dim")


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


def _numbers(progress: Progress) -> Text:
    """The loss and the pace in words."""
    if progress.loss is None:
        return _line(("no step yet", "dim"))
    parts: list[tuple[str, str] | str] = ["loss ", (text.loss(progress.loss), "bold")]
    if progress.baseline_loss is not None:
        parts.append(f"  baseline {text.loss(progress.baseline_loss)}")
    parts.append(f"  {text.rate(progress.samples_per_second)} samples/s")
    if progress.step_seconds is not None:
        parts.append(f"  {text.span(progress.step_seconds)} a step")
    return _line(*parts)


def _loss(progress: Progress, width: int) -> Text:
    if progress.loss is None:
        return _line(("no step yet", "dim"))
    parts: list[tuple[str, str] | str] = ["loss ", (text.loss(progress.loss), "bold"), " "]
    behind = f"  {text.rate(progress.samples_per_second)} samples/s"
    if progress.baseline_loss is not None:
        behind = f"  baseline {text.loss(progress.baseline_loss)}{behind}"
    room = width - sum(len(part if isinstance(part, str) else part[0]) for part in parts) - len(behind)
    return _line(*parts, (text.sparkline(progress.losses, max(0, min(room, 60))), "cyan"), behind)
