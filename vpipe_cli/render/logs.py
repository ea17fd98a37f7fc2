"""Log records as lines: headed and coloured by rank for a person, JSON for a program."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from vpipe_cli.render.console import console
from vpipe_cli.runs.logs import Record, Source
from vpipe_cli.sanitize import clean, decode

if TYPE_CHECKING:
    from rich.text import Text

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta", "bright_green")


def colour(rank: int) -> str:
    """The colour of a rank."""
    return COLOURS[rank % len(COLOURS)]


def heads(sources: Sequence[Source]) -> dict[int, str]:
    """What the lines of each rank begin with, all of one width: ``1/s1 localhost | ``."""
    names = {source.rank: clean(f"{source.rank}/s{source.stage} {source.host}") for source in sources}
    width = max(map(len, names.values()), default=0)
    return {rank: f"{name:{width}} | " for rank, name in names.items()}


def line(record: Record, head: str) -> Text:
    """One record as a line that is cut, not folded, where it does not fit."""
    from rich.text import Text

    text = Text(head, style=colour(record.source.rank), no_wrap=True, overflow="ellipsis", end="\n")
    return text.append(clean(record.text), style="default")


def json_line(record: Record) -> str:
    """One record as JSON. Its text is whole: control characters are escaped by JSON, not dropped."""
    source = record.source
    fields = {"time": record.time, "rank": source.rank, "stage": source.stage, "host": source.host}
    return json.dumps({**fields, "stream": record.stream, "text": decode(record.text)})


def formatter(sources: Sequence[Source], stream: TextIO | None = None) -> Callable[[Record], str]:
    """A function that makes a line of a record: coloured if ``stream`` (standard output) is a terminal.

    Lines are made as strings because a log can have millions of them; only their heads are drawn by rich, once.
    """
    from rich.text import Text

    target = console(stream)
    drawn = {}
    for rank, head in heads(sources).items():
        with target.capture() as capture:
            target.print(Text(head, style=colour(rank)), end="", soft_wrap=True)
        drawn[rank] = capture.get()
    return lambda record: drawn[record.source.rank] + clean(record.text)
