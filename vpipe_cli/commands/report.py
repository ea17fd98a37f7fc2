"""`vpipe report`: one or several runs as a single HTML file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from vpipe_cli.commands import completing

RUNS = "ids, names, or beginnings of ids, to compare several; default: the newest run of this folder"


def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(autocompletion=completing.runs, metavar="[RUN]...", help=RUNS, show_default=False),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="where to write; default: report.html in the first run's folder")
    ] = None,
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output", help="what to print")] = "text",
) -> None:
    """Write what happened in a run, or in several side by side, as one HTML page that opens from disk."""
    from vpipe_cli.report import page
    from vpipe_cli.report.collect import collect
    from vpipe_cli.runs.store import find

    found = [find(run) for run in runs] if runs else [find(None)]
    path = (file or found[0].folder / "report.html").absolute()
    page.write(page.page([collect(run) for run in found]), path)
    if output == "json":
        typer.echo(json.dumps({"schema": 1, "runs": [run.id for run in found], "file": str(path)}))
    else:
        typer.echo(path)
