"""vpipe init: write a commented starter file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init(
    path: Annotated[Path, typer.Argument(help="the file to write")] = Path("cluster.yml"),
    force: Annotated[bool, typer.Option("--force", help="overwrite the file if it exists")] = False,
) -> None:
    """Write a starter cluster.yml that trains on any machine."""
    from vpipe_cli import starter

    starter.write(path, force)
    typer.echo(f"wrote {path}; run it with: vpipe launch {path}")
