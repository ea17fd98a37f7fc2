"""`vpipe top`: the stages of a run at work."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from vpipe_cli.commands import completing

RUN = "id, name, or the beginning of an id; default: the newest run of this folder"


def top(
    run: Annotated[
        str | None, typer.Argument(autocompletion=completing.runs, metavar="[RUN]", help=RUN, show_default=False)
    ] = None,
    output: Annotated[
        Literal["text", "json"], typer.Option("-o", "--output", help="what to print; json: one document, once")
    ] = "text",
) -> None:
    """Watch the stages of a run: how busy, what is in flight, who is slow, the loss. Ctrl-C leaves it running."""
    from vpipe_cli.runs import look
    from vpipe_cli.runs import top as watched
    from vpipe_cli.runs.job import placed_job
    from vpipe_cli.runs.state import standing
    from vpipe_cli.runs.store import find

    found = find(run)
    if output == "json":
        now = standing(found)
        typer.echo(json.dumps(look.document(look.Looker(found, placed_job(found)).frame(now))))
        return
    watched.top(found)
