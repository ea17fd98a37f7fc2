"""`vpipe exec`: a command in the place of a rank."""

from __future__ import annotations

from typing import Annotated

import typer

RUN = "id, name, or the beginning of an id; default: the newest run of this folder"


def exec(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="the command and its arguments")],
    rank: Annotated[int, typer.Option("--rank", min=0, help="in whose place")],
    run: Annotated[str | None, typer.Option("--run", metavar="RUN", help=RUN, show_default=False)] = None,
    shell: Annotated[bool, typer.Option("--shell", help="let sh read the command, with its $ and | and *")] = False,
) -> None:
    """Run a command where a rank runs: on its machine, in its container, with its environment, in its folder."""
    from vpipe_cli.runs.execute import execute
    from vpipe_cli.runs.places import choose, places
    from vpipe_cli.runs.store import find

    found = find(run)
    argv = ["sh", "-c", " ".join(command)] if shell else command
    raise typer.Exit(execute(found, choose(places(found), rank), argv))
