"""`vpipe plan`: which layers run where, and how long that takes, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vpipe_cli.commands import completing


def plan(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            autocompletion=completing.settings, metavar="[CLUSTER.YML] [KEY=VALUE]...", help="Default: cluster.yml."
        ),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="what layers cost: profile.json, or PipeDream's graph.txt")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="of each device, such as 16GiB; or 8GiB,16GiB for each")
    ] = None,
    bandwidth: Annotated[
        str | None, typer.Option(metavar="RATE", help="between devices, both ways together, such as 1GB/s")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="beside an even split, PipeDream's plan and GPipe's")
    ] = False,
    cost_model: Annotated[
        Literal["vpipe", "pipedream"], typer.Option(help="pipedream: plan and time as PipeDream's optimizer does")
    ] = "vpipe",
    schedules: Annotated[
        Literal["given", "every"], typer.Option(help="every: the best of all schedules of the same sync_mode")
    ] = "given",
    replicas: Annotated[
        Literal["given", "free"], typer.Option(help="free: as many ranks for each stage as is best")
    ] = "given",
    in_flight: Annotated[
        Literal["given", "free"], typer.Option(help="free: as many minibatches at once as hide the links best")
    ] = "given",
    output: Annotated[Literal["text", "json", "png"], typer.Option("-o", "--output")] = "text",
    file: Annotated[Path, typer.Option(metavar="FILE", help="where -o png draws")] = Path("plan.png"),
) -> None:
    """Plan a job: partition, replicas and recomputation, with the predicted step, its lower bound, and why.

    With a profile it needs no torch and no machine. A profile in PipeDream's format names no model: machines=[cpu*4]
    on the command line, or a cluster.yml, says what to plan for.
    """
    from vpipe_cli import config, planning
    from vpipe_cli.render import plan as render

    path, overrides = config.split(arguments or [])
    free = {"every_schedule": schedules == "every", "free_replicas": replicas == "free"}
    free["free_depth"] = in_flight == "free"
    request = planning.Request(path, overrides, profile, memory, bandwidth, cost_model, **free)
    report = planning.plan(request, compare)
    if output == "json":
        typer.echo(render.document(report))
    elif output == "png":
        render.save(report, file)
        typer.echo(str(file))
    else:
        typer.echo(render.describe(report))
