"""`vpipe note`: keep a remark with a run, or read them."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from vpipe_cli.commands import completing


def note(
    run: Annotated[
        str, typer.Argument(autocompletion=completing.runs, metavar="RUN", help="id, name, or the beginning of an id")
    ],
    text: Annotated[str | None, typer.Argument(help="what to remember; without it, notes are shown")] = None,
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output", help="what to print")] = "text",
) -> None:
    """Keep a remark with a run, or show its remarks."""
    import time

    from vpipe_cli.runs import notes
    from vpipe_cli.runs.store import find
    from vpipe_cli.sanitize import clean

    found = find(run)
    if text is not None:
        notes.add(found, text)
    kept = notes.notes(found)
    if output == "json":
        typer.echo(json.dumps({"schema": 1, "run": found.id, "notes": [vars(each) for each in kept]}))
    elif text is None:
        for each in kept:
            typer.echo(f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(each.time))}  {clean(each.text)}")
        if not kept:
            typer.echo(f"no notes; write one: vpipe note {found.id} 'TEXT'", err=True)
