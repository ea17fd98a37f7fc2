"""A sweep as a table, live or whole; its plan before it runs; and its plots as text."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, TextIO

from vpipe_cli.render import text
from vpipe_cli.render.console import can_redraw, console
from vpipe_cli.render.sweep_plot import plots
from vpipe_cli.render.sweep_table import has_ended, point, table
from vpipe_cli.sanitize import clean
from vpipe_cli.sweep.records import Definition
from vpipe_cli.sweep.results import Line, best, launch_command

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from vpipe_cli.sweep.files import SweepFiles
    from vpipe_cli.sweep.watch import Look

HINT = "Ctrl-C leaves it running, twice stops it"
COMMANDS = 20
"""Trials up to which the command of each is printed."""


class View(Protocol):
    """Shows a sweep while it runs."""

    def show(self, look: Look, notice: str = "") -> None:
        """Show it as it stands."""


def view(stream: TextIO | None = None) -> LiveTable | Lines:
    """A live table where the terminal can do it, else a line for whatever happens."""
    target = console(stream or sys.stdout)
    return LiveTable(target) if can_redraw(target) else Lines(stream or sys.stdout)


class LiveTable(AbstractContextManager["LiveTable"]):
    """The table on a screen of its own, drawn anew at each look."""

    def __init__(self, target: Console) -> None:
        self._console, self._began = target, time.monotonic()

    def __enter__(self) -> LiveTable:
        from rich.live import Live

        self._live: Live = Live(console=self._console, screen=True, auto_refresh=False, vertical_overflow="crop")
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, look: Look, notice: str = "") -> None:
        """Draw it, as large as the terminal is now."""
        width, height = self._console.size
        seconds = time.monotonic() - self._began
        self._live.update(frame(look, notice, seconds, width, height), refresh=True)


class Lines(AbstractContextManager["Lines"]):
    """Appends a line for every trial that begins or ends."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._seen: dict[str, str] = {}
        self._notice = ""

    def __exit__(self, *_: object) -> None:
        """Nothing is left to do."""

    def show(self, look: Look, notice: str = "") -> None:
        """Write what has changed."""
        for line in sorted(look.table, key=lambda line: not has_ended(line.row)):
            now = line.row.state if has_ended(line.row) else line.row.run
            if now and self._seen.get(line.trial.identity) != now and line.row.state != "waiting":
                self._write(_line(look.definition, line, len(look.table)))
            self._seen[line.trial.identity] = now
        if notice != self._notice:
            self._notice = notice
            self._write(notice)

    def _write(self, said: str) -> None:
        self._stream.write(said + "\n")
        self._stream.flush()


def _line(definition: Definition, line: Line, total: int) -> str:
    row = line.row
    head = f"trial {row.number}/{total}  {point(definition, line)}"
    if not has_ended(row):
        return f"{head}  runs as {row.run}"
    numbers = f"{text.rate(row.samples_per_second)} samples/s" if row.samples_per_second else ""
    memory = f"{text.size(row.peak)} peak" if row.peak else ""
    loss = f"loss {text.loss(row.loss)}" if row.loss is not None else ""
    reused = f"(ran in {row.reused})" if row.reused else ""
    return "  ".join(filter(None, [head, row.state, numbers, memory, loss, clean(row.cause), reused]))


def frame(look: Look, notice: str, seconds: float, width: int, height: int) -> RenderableType:
    """The live view of ``width`` x ``height`` characters: how far it is, the table, what runs now."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.rule import Rule
    from rich.table import Table
    from rich.text import Text

    total, done = len(look.table), look.done
    running = [line for line in look.table if line.row.state not in ("waiting",) and not has_ended(line.row)]
    headline = Text.assemble(
        (look.definition.sweep, "bold"), "  ", (f"{done}/{total} trials", "bold"), (f"  {text.clock(seconds)}", "dim"),
        no_wrap=True, overflow="ellipsis",
    )  # fmt: skip
    room = max(1, height - 5 - max(1, len(running)))
    below = [
        Text(
            f"trial {line.row.number} {line.row.state}  step {line.row.step}/{line.row.steps}  {line.row.run}",
            no_wrap=True, overflow="ellipsis", style="dim",
        )
        for line in running[: max(1, height - 7)]
    ]  # fmt: skip
    rows, hidden = _window(look.table, room)
    rule = Rule(Text(notice, style="bold yellow") if notice else Text(HINT, style="dim"), align="right", style="dim")
    more = [Text(f"... and {hidden} more trials", style="dim")] if hidden else []
    bar = Table.grid(expand=True)
    bar.add_row(ProgressBar(total=total, completed=done))
    return Group(headline, bar, table(look.definition, rows, width), *more, rule, *below)


def _window(every: Sequence[Line], room: int) -> tuple[list[Line], int]:
    """As many lines as there is room for, those that run among them, and how many are not shown."""
    if len(every) <= room:
        return list(every), 0
    room = max(1, room - 1)
    active = [at for at, line in enumerate(every) if line.row.state != "waiting" and not has_ended(line.row)]
    ended = [at for at, line in enumerate(every) if has_ended(line.row)]
    waiting = [at for at, line in enumerate(every) if line.row.state == "waiting"]
    chosen = sorted([*active, *ended[:1], *ended[:0:-1], *waiting][:room])
    return [every[at] for at in chosen], len(every) - len(chosen)


def summary(look: Look, files: SweepFiles, picture: str, width: int, commands: bool = False) -> RenderableType:
    """How a sweep has ended or stands: the table, plots, what failed, where the files are."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [_headline(look), "", table(look.definition, look.table, width)]
    parts += [Text(f"  {said}", style="dim") for said in _legend(look.table)]
    parts += [Text(said) for said in _troubles(look)]
    if drawn := plots(look.definition, look.table, min(width, 100)):
        parts += ["", *map(Text, drawn)]
    if compared := planner(look.table, look.definition):
        parts += ["", Text(compared)]
    if commands or len(look.table) <= COMMANDS:
        parts += ["", Text("to run one of them again:", style="dim")]
        parts += [Text(f"  {launch_command(look.definition, line.trial)}") for line in look.table]
    results = files.results("jsonl")
    where = str(results).replace(".jsonl", ".{jsonl,csv,md}") if results.exists() else "none yet"
    return Group(*parts, "", Text(f"  results  {where}"), Text(f"  picture  {picture}"))


def _headline(look: Look) -> Text:
    from rich.text import Text

    style = {"done": "green", "failed": "bold red", "running": "bold green"}.get(look.state, "yellow")
    why = look.gone or look.over.partition(": ")[2]
    said = f": {look.done} of {len(look.table)} trials have ended"
    line = Text.assemble("sweep ", look.definition.sweep, " ", (look.state, style), said)
    if why:
        line.append(f"\n  {clean(why)}")
    if look.gone or (look.over not in ("", "done") and look.done < len(look.table)):
        line.append("\n  the same command again goes on with the rest")
    return line


def _legend(every: Sequence[Line]) -> list[str]:
    said = []
    if any(line.is_pareto for line in every):
        said.append("* no other trial is better in both throughput and peak memory (of the worst stage)")
    if any(line.is_choice for line in every):
        said.append("P the planner's choice")
    return said


def _troubles(look: Look) -> list[str]:
    """What went wrong in which trial."""
    said = []
    for line in look.table:
        row = line.row
        if row.state not in ("oom", "failed", "lost"):
            continue
        where = f" in stage {row.stage}" if row.stage is not None else ""
        what = f"out of memory{where}" if row.state == "oom" else f"{row.state}{where}"
        peak = f", peak before that {text.size(row.peak)}" if row.state == "oom" and row.peak else ""
        then = f"(vpipe logs {row.run})" if row.run else "(it was not run)"
        said.append(f"  trial {row.number} {what}{peak}: {clean(row.cause) or 'no word of why'} {then}")
    return said


def planner(every: Sequence[Line], definition: Definition) -> str:
    """The planner's choice beside the best that was found; empty where it has no result."""
    chosen = next((line for line in every if line.is_choice and line.row.state == "succeeded"), None)
    found = best(every)
    if chosen is None or found is None or not chosen.row.samples_per_second or not found.row.samples_per_second:
        return ""
    said = f"the planner's choice, {point(definition, chosen)}: {text.rate(chosen.row.samples_per_second)} samples/s"
    if found.trial.identity == chosen.trial.identity:
        return f"{said}, the best found"
    share = 1 - chosen.row.samples_per_second / found.row.samples_per_second
    rate = text.rate(found.row.samples_per_second)
    return f"{said}, {share:.1%} below the best found, {point(definition, found)} with {rate}"


def left(sweep: str, asked_to_stop: bool = False) -> RenderableType:
    """What to do after having left a sweep that goes on."""
    from rich.text import Text

    how = "was asked to stop and has not ended yet" if asked_to_stop else "goes on without you"
    rows = [("show", "see how it stands"), ("show -f", "watch it again"), ("stop", "end it")]
    return Text("\n".join([f"sweep {sweep} {how}", *(f"  vpipe sweep {c:8}{sweep}   {what}" for c, what in rows)]))
