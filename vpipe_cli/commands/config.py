"""vpipe config schema, vpipe config show: what cluster.yml may say, and what one says once worked out."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

config = typer.Typer(no_args_is_help=True)


@config.command()
def schema() -> None:
    """Print the JSON schema of cluster.yml, which editors use to check and complete it."""
    from worker.spec.cluster import ClusterSpec

    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **ClusterSpec.model_json_schema()}
    typer.echo(json.dumps(document, indent=2))


@config.command()
def show(
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CLUSTER.yml] [KEY=VALUE]...", help="the file (default: ./cluster.yml), and values to set"
        ),
    ] = None,
    output: Annotated[Literal["yaml", "json"], typer.Option("-o", "--output", help="what to print")] = "yaml",
) -> None:
    """Print a cluster.yml with every default worked out, or all its mistakes."""
    from vpipe_cli import yamltree
    from vpipe_cli.config import load, split

    values = load(*split(given or [])).model_dump(mode="json")
    if output == "json":
        typer.echo(json.dumps({"schema": 1, **values}))
    else:
        typer.echo(yamltree.dump(values), nl=False)
