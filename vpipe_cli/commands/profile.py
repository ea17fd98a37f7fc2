"""`vpipe profile`: measure what each layer of a job costs on its machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vpipe_cli.commands import completing


def profile(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            autocompletion=completing.settings, metavar="[CLUSTER.YML] [KEY=VALUE]...", help="Default: cluster.yml."
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write it there as well: .json, or .txt as PipeDream's graph")
    ] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="draw what the layers cost")] = None,
    repeats: Annotated[int, typer.Option(min=1, max=1000, help="passes whose median counts")] = 10,
    deadline: Annotated[float, typer.Option(metavar="SECONDS", help="give up after")] = 1800.0,
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output")] = "text",
) -> None:
    """Measure each layer of a job on its machines, and the links between ranks; kept for `vpipe plan` and `launch`."""
    from vpipe_cli import config, machines, profiles
    from vpipe_cli.render import profile as render

    path, overrides = config.split(arguments or [])
    spec = config.load(path, overrides)
    slots = machines.slots(spec.machines)
    found = profiles.measure(spec, slots, profiles.kept(spec, slots), deadline, repeats, quiet=False)
    if file is not None:
        profiles.save(found, file)
    if png is not None:
        render.draw(found, png)
    typer.echo(found.to_json() if output == "json" else render.describe(found, profiles.kept(spec, slots)))
