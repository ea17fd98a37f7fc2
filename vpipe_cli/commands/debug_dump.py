"""`vpipe debug-dump`: what there is to know of a run, in one file that can be sent to somebody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from vpipe_cli.commands import completing

RUN = "id, name, or the beginning of an id; default: the newest run of this folder"


def debug_dump(
    run: Annotated[
        str | None, typer.Argument(autocompletion=completing.runs, metavar="[RUN]", help=RUN, show_default=False)
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="default: RUN.debug.tar.gz here")] = None,
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output", help="what to print")] = "text",
) -> None:
    """Pack a run's configuration, history and the ends of its logs into one file, without secrets and weights."""
    import os

    from vpipe_cli.runs import dump
    from vpipe_cli.runs.store import find

    found = find(run)
    path = (to or Path(f"{found.id}.debug.tar.gz")).absolute()
    names = dump.write(found, path, os.environ)
    if output == "json":
        typer.echo(json.dumps({"schema": 1, "run": found.id, "file": str(path), "names": names}))
    else:
        typer.echo(f"{path}: {len(names)} files, {path.stat().st_size / 1e3:.0f} kB")
        typer.echo(dump.NOT_TAKEN, nl=False, err=True)
