"""`vpipe logs`: what the ranks of a run have printed, and print."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Literal

import typer

from vpipe_cli.commands import completing

RUN = "id, name, or the beginning of an id; default: the newest run of this folder"


def logs(
    run: Annotated[
        str | None, typer.Argument(autocompletion=completing.runs, metavar="[RUN]", help=RUN, show_default=False)
    ] = None,
    rank: Annotated[str | None, typer.Option("--rank", metavar="0,2-3", help="only these ranks")] = None,
    stage: Annotated[int | None, typer.Option("--stage", min=0, help="only the ranks of this stage")] = None,
    host: Annotated[str | None, typer.Option("--host", help="only the ranks of this host")] = None,
    attempt: Annotated[
        int | None, typer.Option("--attempt", min=1, metavar="K", help="that start of the run; default: the newest")
    ] = None,
    every: Annotated[bool, typer.Option("--all-attempts", help="every start of the run")] = False,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="go on until the run ends")] = False,
    tail: Annotated[int | None, typer.Option("--tail", min=0, metavar="N", help="begin N lines before the end")] = None,
    since: Annotated[str | None, typer.Option("--since", metavar="5m", help="begin so long ago, or at a time")] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="5m", help="end there")] = None,
    grep: Annotated[str | None, typer.Option("--grep", metavar="RE", help="only lines that match")] = None,
    sync: Annotated[
        Path | None,
        typer.Option("--sync", metavar="DIR", help="copy there what is new in the logs, as it is"),
    ] = None,
    output: Annotated[Literal["text", "jsonl"], typer.Option("-o", "--output", help="what to print")] = "text",
) -> None:
    """Print the logs of a run's ranks, merged by time. All of them, unless an option says less."""
    from vpipe_cli.render.logs import Lines
    from vpipe_cli.runs import logs as reader
    from vpipe_cli.runs.ask import Choice, ask, copy
    from vpipe_cli.runs.reading import Query
    from vpipe_cli.runs.store import find
    from worker.errors import UsageError

    if follow and until:
        raise UsageError("--follow goes on until the run ends, --until says otherwise", "leave one of them out")
    found = find(run)
    choice = Choice(rank, stage, host, attempt, every)
    if sync is not None:
        for path, count in copy(found, choice, sync, _say):
            typer.echo(f"{path}  {count} bytes new")
        return
    now = datetime.now(timezone.utc)
    begin = reader.moment(since, now) if since is not None else None
    end = reader.moment(until, now, "--until") if until is not None else None
    query = Query(begin, end, reader.pattern(grep).pattern if grep is not None else None, tail, follow)
    with suppress(BrokenPipeError, KeyboardInterrupt), ask(found, choice, query, _pause, _say) as (sources, lines):
        for batch in lines(Lines(sources, output)):
            sys.stdout.write("".join(batch))


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _pause() -> None:
    sys.stdout.flush()
    time.sleep(0.2)
