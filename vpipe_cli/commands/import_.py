"""`vpipe import`: a configuration of vPipe's or PipeDream's driver as cluster.yml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def import_(
    old: Annotated[Path, typer.Argument(metavar="OLD.yml", help="a configuration of vPipe's or PipeDream's driver.py")],
    file: Annotated[Path, typer.Option("-f", "--file", help="the file to write")] = Path("cluster.yml"),
    examples: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="examples in an epoch: epochs are counted as steps here")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite the file if it exists")] = False,
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output", help="how notes are printed")] = "text",
) -> None:
    """Turn a configuration of vPipe or PipeDream into cluster.yml, and say what it could not carry over."""
    import json

    from vpipe_cli.importing import convert
    from vpipe_cli.render import imported as render

    made = convert.convert(old, examples)
    convert.save(made, file, force)
    if output == "json":
        typer.echo(json.dumps(render.document(file, made.notes), indent=2))
    else:
        for line in render.lines(file, made.notes):
            typer.echo(line)


import_.__name__ = "import"  # the command's name, which Python does not let a function be defined by
