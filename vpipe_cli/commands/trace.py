"""`vpipe trace`: what every rank did in the recorded steps, on one time line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from vpipe_cli.commands import completing

RUN = "id, name, or the beginning of an id; default: the newest run of this folder"


def trace(
    run: Annotated[
        str | None, typer.Argument(autocompletion=completing.runs, metavar="[RUN]", help=RUN, show_default=False)
    ] = None,
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="where to write; default: trace.json in the run's folder")
    ] = None,
    torch_profiler: Annotated[
        bool,
        typer.Option("--torch-profiler", help="with torch's operators, of a run that had trace.torch=true"),
    ] = False,
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output", help="what to print")] = "text",
) -> None:
    """Merge the recorded spans of all ranks into a trace that Perfetto and chrome://tracing open."""
    from dataclasses import asdict

    from vpipe_cli.render import spans
    from vpipe_cli.render.console import show
    from vpipe_cli.runs.job import placed_job
    from vpipe_cli.runs.store import find
    from vpipe_cli.tracing import sums, torch_profile, write
    from vpipe_cli.tracing.read import read

    found = find(run)
    traces = read(found, placed_job(found))
    operators = torch_profile.events(found, traces) if torch_profiler else []
    path = write.chrome(found, traces, file, operators)
    ranks = [sums.shares(each) for each in traces]
    if output == "json":
        about = {"schema": 1, "run": found.id, "file": str(path)}
        error = max(each.offset_error for each in traces)
        typer.echo(json.dumps({**about, "clock_error_seconds": error, "ranks": [asdict(each) for each in ranks]}))
        return
    show(spans.table(ranks))
    typer.echo(spans.summary(traces, path))
