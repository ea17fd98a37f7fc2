"""`vpipe ps`: the runs of this machine, newest first."""

from __future__ import annotations

import json
import time
from typing import Annotated, Literal

import typer

NEWEST = 20


def ps(
    every: Annotated[bool, typer.Option("--all", help=f"all runs; otherwise the newest {NEWEST}")] = False,
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output", help="what to print")] = "text",
) -> None:
    """List runs, newest first."""
    from vpipe_cli.render import tables
    from vpipe_cli.render.console import console
    from vpipe_cli.runs.outcome import outcome
    from vpipe_cli.runs.store import home, list_runs

    found = list_runs()
    shown = found if every else found[:NEWEST]
    listed = [outcome(run) for run in shown]
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
        typer.echo(f"no run in {home()} yet", err=True)
    if len(shown) < len(found):
        typer.echo(f"{len(found) - len(shown)} older ones: vpipe ps --all", err=True)
