"""`vpipe logs`: what the ranks of a run have printed, and print."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from vpipe_cli.runs.logs import Record, Source
    from vpipe_cli.runs.store import Run

RUN = "id, name, or the beginning of an id; default: the newest run of this folder"


def logs(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help=RUN, show_default=False)] = None,
    rank: Annotated[str | None, typer.Option("--rank", metavar="0,2-3", help="only these ranks")] = None,
    stage: Annotated[int | None, typer.Option("--stage", min=0, help="only the ranks of this stage")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="go on until the run ends")] = False,
    tail: Annotated[int | None, typer.Option("--tail", min=0, metavar="N", help="begin N lines before the end")] = None,
    since: Annotated[str | None, typer.Option("--since", metavar="5m", help="begin so long ago, or at a time")] = None,
    grep: Annotated[str | None, typer.Option("--grep", metavar="RE", help="only lines that match")] = None,
    output: Annotated[Literal["text", "jsonl"], typer.Option("-o", "--output", help="what to print")] = "text",
) -> None:
    """Print the logs of a run's ranks, merged by time. All of them, unless an option says less."""
    from vpipe_cli.render.logs import formatter, json_line
    from vpipe_cli.runs import logs as reader
    from vpipe_cli.runs.job import placed_job
    from vpipe_cli.runs.store import find

    found = find(run)
    chosen = reader.choose(reader.sources(found.files, placed_job(found)), rank, stage)
    begin = reader.moment(since, datetime.now(timezone.utc)) if since is not None else None
    cursor = {source.rank: reader.since(source.path, begin) for source in chosen} if begin else {}
    line = json_line if output == "jsonl" else formatter(chosen)
    with suppress(BrokenPipeError, KeyboardInterrupt):  # the reader has seen enough
        for record in _records(found, chosen, cursor, _matcher(grep), tail, follow):
            sys.stdout.write(line(record) + "\n")


def _matcher(grep: str | None) -> Callable[[Record], bool]:
    from vpipe_cli.runs.logs import pattern
    from vpipe_cli.sanitize import clean

    if grep is None:
        return lambda record: True
    wanted = pattern(grep)
    return lambda record: wanted.search(clean(record.text)) is not None


def _records(
    run: Run,
    chosen: list[Source],
    cursor: dict[int, int],
    wanted: Callable[[Record], bool],
    tail: int | None,
    follow: bool,
) -> Iterator[Record]:
    from vpipe_cli.runs import logs as reader

    if tail is not None:
        yield from reader.last(chosen, cursor, tail, wanted, rest=not follow and _ended(run))
    if follow:
        yield from filter(wanted, reader.follow(chosen, cursor, lambda: _ended(run), _pause))
    elif tail is None:
        yield from filter(wanted, reader.read(chosen, cursor, rest=_ended(run)))


def _pause() -> None:
    sys.stdout.flush()
    time.sleep(0.2)


def _ended(run: Run) -> bool:
    from vpipe_cli.runs.state import standing
    from worker.spec.records import FINAL

    return standing(run).state in FINAL
