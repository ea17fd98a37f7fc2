"""`vpipe stack`: where every rank is at this moment."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from vpipe_cli.commands import completing

RUN = "id, name, or the beginning of an id; default: the newest run of this folder"


def stack(
    run: Annotated[
        str | None, typer.Argument(autocompletion=completing.runs, metavar="[RUN]", help=RUN, show_default=False)
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=0, help="only this rank")] = None,
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output", help="what to print")] = "text",
) -> None:
    """Show the stacks of all ranks of a running job, without disturbing it."""
    from vpipe_cli.render import stacks as drawn
    from vpipe_cli.render.console import show
    from vpipe_cli.runs.places import choose, places
    from vpipe_cli.runs.stacks import stacks
    from vpipe_cli.runs.state import standing
    from vpipe_cli.runs.store import find
    from worker.errors import UsageError
    from worker.spec.records import FINAL

    found = find(run)
    every = places(found)
    chosen = every if rank is None else [choose(every, rank)]
    if (state := standing(found).state) in FINAL:
        hint = f"`vpipe logs {found.id}` has what it said"
        raise UsageError(f"run {found.id} has ended ({state}): no rank of it runs", hint)
    answers = stacks(found, chosen)
    if output == "json":
        typer.echo(json.dumps({"schema": 1, "run": found.id, "ranks": [vars(each) for each in answers]}))
    else:
        show(drawn.stacks(answers))
