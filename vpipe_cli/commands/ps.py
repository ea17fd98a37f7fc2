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
    state: Annotated[str | None, typer.Option("--state", help="only runs in this state")] = None,
    orphans: Annotated[
        bool, typer.Option("--orphans", help="processes that outlived their runs, here and on the hosts of known runs")
    ] = False,
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output", help="what to print")] = "text",
) -> None:
    """List runs, newest first."""
    if orphans:
        _orphans(output)
        return
    from fnmatch import fnmatchcase

    from vpipe_cli.render import tables
    from vpipe_cli.render.console import console
    from vpipe_cli.runs.outcome import outcome
    from vpipe_cli.runs.store import home, list_runs

    found = [run for run in list_runs() if name is None or fnmatchcase(run.name, name) or fnmatchcase(run.id, name)]
    shown = found if every else found[:NEWEST]
    listed = [stands for stands in map(outcome, shown) if state is None or stands.state == state]
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
        typer.echo(f"no such run in {home()}" if name or state else f"no run in {home()} yet", err=True)
    if len(shown) < len(found):
        typer.echo(f"{len(found) - len(shown)} older ones: vpipe ps --all", err=True)


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
