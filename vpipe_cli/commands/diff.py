"""`vpipe diff`: what differs between two runs."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from vpipe_cli.commands import completing

RUN = "id, name, or the beginning of an id"


def diff(
    a: Annotated[str, typer.Argument(autocompletion=completing.runs, metavar="A", help=RUN)],
    b: Annotated[str, typer.Argument(autocompletion=completing.runs, metavar="B", help=RUN)],
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output", help="what to print")] = "text",
) -> None:
    """Show what differs between two runs: config, plan, places, result."""
    from vpipe_cli.render.console import show
    from vpipe_cli.render.diff import table
    from vpipe_cli.runs.compare import compare
    from vpipe_cli.runs.store import find

    one, other = find(a), find(b)
    changes = compare(one, other)
    if output == "json":
        listed = [vars(change) for change in changes]
        typer.echo(json.dumps({"schema": 1, "a": one.id, "b": other.id, "changes": listed}))
    elif changes:
        show(table(changes, one.id, other.id))
    else:
        typer.echo(f"{one.id} and {other.id} are alike in all that is compared")
