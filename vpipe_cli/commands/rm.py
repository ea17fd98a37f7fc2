"""`vpipe rm`: remove runs that have ended, or processes that outlived theirs."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Literal

import typer

from vpipe_cli.commands import completing


def rm(
    runs: Annotated[
        list[str] | None,
        typer.Argument(autocompletion=completing.runs, metavar="RUN...", help="ids, names, or beginnings of ids"),
    ] = None,
    orphans: Annotated[bool, typer.Option("--orphans", help="end processes that outlived their runs")] = False,
    local: Annotated[bool, typer.Option("--local", help="remove only what is on this machine")] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="do not ask")] = False,
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output", help="what to print")] = "text",
) -> None:
    """Remove runs that have ended, with all they left: here, and on the hosts they ran on."""
    from vpipe_cli.runs.remove import check, remove
    from vpipe_cli.runs.store import find
    from worker.errors import UsageError

    if bool(runs) == orphans:
        raise UsageError("name runs to remove, or --orphans", "`vpipe ps` lists runs, `vpipe ps --orphans` processes")
    if orphans:
        _end_orphans(yes, output)
        return
    found = list({run.id: run for run in map(find, runs or [])}.values())
    for run in found:
        check(run)
    _confirm("\n".join([*(f"  {run.id}  {run.folder}" for run in found), "remove these for good?"]), yes)
    done = []
    for run in found:
        done.append({"run": run.id, "removed": remove(run, local)})
        if output == "text":
            typer.echo(f"removed {run.id}")
    if output == "json":
        typer.echo(json.dumps({"schema": 1, "runs": done}))


def _end_orphans(yes: bool, output: str) -> None:
    from vpipe_cli.render import tables
    from vpipe_cli.render.console import show
    from vpipe_cli.runs.orphans import orphans

    found, silent = orphans()
    for host, reason in silent.items():
        typer.echo(f"not asked: {host}: {reason}", err=True)
    if found and output == "text":
        show(tables.orphans(found))
    if found:
        _confirm("end these processes?", yes)
        found, _ = orphans(kill=True)
    if output == "json":
        typer.echo(json.dumps({"schema": 1, "orphans": [vars(each) for each in found], "not_asked": silent}))
    else:
        left = [each for each in found if not each.ended]
        typer.echo(f"ended {len(found) - len(left)} processes" if found else "there is no such process")
        for each in left:
            typer.echo(f"still there: process {each.pid} of {each.user} on {each.host}", err=True)


def _confirm(question: str, yes: bool) -> None:
    from worker.errors import UsageError

    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to be asked", "-y says yes")
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)
