"""Log records as lines: headed and coloured by rank for a person, JSON for a program."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from vpipe_cli.render.console import console
from vpipe_cli.runs.logs import Record, Source, record
from vpipe_cli.runs.merge import Piece, entries
from vpipe_cli.sanitize import clean, decode
from worker.logfilter import HEAD, PLAIN, shown_all

if TYPE_CHECKING:
    from rich.text import Text

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta", "bright_green")


def colour(rank: int) -> str:
    """The colour of a rank."""
    return COLOURS[rank % len(COLOURS)]


def heads(sources: Sequence[Source]) -> dict[int, str]:
    """What the lines of each rank begin with, all of one width: ``1/s1 localhost | ``."""
    return dict(zip((source.rank for source in sources), _heads(sources), strict=True))


def _heads(sources: Sequence[Source], attempts: bool = False) -> list[str]:
    names = [clean(f"{source.rank}/s{source.stage} {source.host}") for source in sources]
    if attempts:
        names = [f"#{source.attempt} {name}" for source, name in zip(sources, names, strict=True)]
    width = max(map(len, names), default=0)
    return [f"{name:{width}} | " for name in names]


def line(record: Record, head: str) -> Text:
    """One record as a line that is cut, not folded, where it does not fit."""
    from rich.text import Text

    text = Text(head, style=colour(record.source.rank), no_wrap=True, overflow="ellipsis", end="\n")
    return text.append(clean(record.text), style="default")


def json_line(record: Record) -> str:
    """One record as JSON. Its text is whole: control characters are escaped by JSON, not dropped."""
    source = record.source
    fields = {"time": record.time, "rank": source.rank, "stage": source.stage, "host": source.host}
    return json.dumps({**fields, "attempt": source.attempt, "stream": record.stream, "text": decode(record.text)})


def formatter(sources: Sequence[Source], stream: TextIO | None = None) -> Callable[[Record], str]:
    """A function that makes a line of a record: coloured if ``stream`` (standard output) is a terminal."""
    drawn = dict(zip((source.rank for source in sources), _drawn(sources, False, stream), strict=True))
    return lambda record: drawn[record.source.rank] + clean(record.text)


class Lines:
    """Makes text of whole pieces of a log, which can have millions of lines: rich draws their heads only, once.

    Args:
        sources: may grow; a piece's number is its place in it.
        attempts: whether lines say which attempt they are of. They do as soon as there are several.
        output: ``text``, or ``jsonl`` for one JSON object a line.
    """

    def __init__(self, sources: Sequence[Source], output: str, stream: TextIO | None = None) -> None:
        self._sources, self._output, self._stream = sources, output, stream
        self._heads: list[str] = []

    def __call__(self, piece: Piece) -> list[str]:
        """Its lines, each with its newline. Most pieces are printable ASCII, and need no cleaning."""
        if self._output == "jsonl":
            source = self._sources[piece.number]
            return [json_line(record(entry, source)) + "\n" for entry in entries(piece)]
        if len(self._heads) < len(self._sources):
            several = len({source.attempt for source in self._sources}) > 1
            self._heads = _drawn(self._sources, several, self._stream)
        head = self._heads[piece.number]
        if piece.stamped and not piece.data.translate(None, PLAIN):
            return [f"{head}{line[HEAD:]}\n" for line in piece.lines]
        return [f"{head}{text}\n" for text in shown_all(piece.data)]


def _drawn(sources: Sequence[Source], attempts: bool, stream: TextIO | None) -> list[str]:
    """The heads as written to ``stream``: with colours if it is a terminal."""
    from rich.text import Text

    target = console(stream)
    drawn = []
    for source, head in zip(sources, _heads(sources, attempts), strict=True):
        with target.capture() as capture:
            target.print(Text(head, style=colour(source.rank)), end="", soft_wrap=True)
        drawn.append(capture.get())
    return drawn
