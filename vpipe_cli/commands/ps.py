"""`vpipe ps`: the runs of this machine, newest first."""

from __future__ import annotations

import json
import time
from typing import Annotated, Literal

import typer

NEWEST = 20


def ps(
    every: Annotated[bool, typer.Option("--all", help=f"all runs; otherwise the newest {NEWEST}")] = False,
    name: Annotated[str | None, typer.Option("--name", metavar="PATTERN", help="only runs so named, as bert-*")] = None,
    state: Annotated[str | None, typer.Option("--state", metavar="STATE", help="only runs in this state")] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="2d", help="only runs that began since then, or since a time"),
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="2d", help="only runs that began before")] = None,
    orphans: Annotated[
        bool, typer.Option("--orphans", help="processes that outlived their runs, here and on the hosts of known runs")
    ] = False,
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output", help="what to print")] = "text",
) -> None:
    """List runs, newest first."""
    if orphans:
        _orphans(output)
        return
    from vpipe_cli.render import tables
    from vpipe_cli.render.console import console
    from vpipe_cli.runs.history import Wanted
    from vpipe_cli.runs.store import home

    wanted = Wanted.of(name, state, since, until)
    listed, older = wanted.newest(None if every else NEWEST)
    if output == "json":
        runs = [
            {"run": run.run, "state": run.state, "step": run.step, "steps": run.steps, "loss": run.loss}
            | {"started": run.started, "folder": str(run.folder)}
            for run in listed
        ]
        typer.echo(json.dumps({"schema": 1, "runs": runs}))
    elif listed:
        target = console()
        target.print(tables.runs(listed, time.time(), target.width))
    else:
        typer.echo(f"no such run in {home()}" if wanted != Wanted() else f"no run in {home()} yet", err=True)
    if older:
        typer.echo(f"{older} older ones: vpipe ps --all", err=True)


def _orphans(output: str) -> None:
    from vpipe_cli.render import tables
    from vpipe_cli.render.console import show
    from vpipe_cli.runs.orphans import orphans

    found, silent = orphans()
    for host, reason in silent.items():
        typer.echo(f"not asked: {host}: {reason}", err=True)
    if output == "json":
        typer.echo(json.dumps({"schema": 1, "orphans": [vars(each) for each in found], "not_asked": silent}))
    elif found:
        show(tables.orphans(found))
        typer.echo("vpipe rm --orphans ends them", err=True)
    else:
        typer.echo("no process has outlived its run", err=True)
