"""`vpipe status`: how a run stands, or how it ended."""

from __future__ import annotations

import json
import time
from typing import Annotated, Literal

import typer

from vpipe_cli.commands import completing

RUN = "id, name, or the beginning of an id; default: the newest run of this folder"


def status(
    run: Annotated[
        str | None, typer.Argument(autocompletion=completing.runs, metavar="[RUN]", help=RUN, show_default=False)
    ] = None,
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output", help="what to print")] = "text",
) -> None:
    """Show how a run stands: its progress, its ranks, and in the end its numbers or who failed first."""
    from vpipe_cli import plot
    from vpipe_cli.render import summary, tables
    from vpipe_cli.render.console import show
    from vpipe_cli.runs.outcome import outcome
    from vpipe_cli.runs.state import status as document
    from vpipe_cli.runs.store import find
    from worker.spec.records import FINAL

    found = find(run)
    if output == "json":
        typer.echo(json.dumps(document(found)))
        return
    stands = outcome(found)
    if stands.state not in FINAL:
        show(tables.run(stands, time.time()))
        return
    show(summary.summary(stands, plot.ensure(found)))
    if stands.state != "succeeded":
        typer.echo()
        show(tables.ranks(stands.ranks))
