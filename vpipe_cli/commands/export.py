"""`vpipe export`: the job of a cluster.yml for another system."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

export = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


@export.callback()
def _export() -> None:
    """Write the job of a cluster.yml for another system."""


@export.command()
def jobset(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[CLUSTER.YML] [KEY=VALUE]...", help="Default: cluster.yml.")
    ] = None,
    image: Annotated[str, typer.Option(metavar="NAME", help="of a registry; default: that of container")] = "",
    claim: Annotated[
        str, typer.Option(metavar="NAME", help="PersistentVolumeClaim, ReadWriteMany, that keeps the run")
    ] = "vpipe",
    code: Annotated[
        str, typer.Option(metavar="PATH", help="folder of vpipe's worker package in the image")
    ] = "/vpipe/code",
    output: Annotated[Literal["yaml", "json"], typer.Option("-o", "--output", help="what to print")] = "yaml",
) -> None:
    """Print a JobSet for Kubernetes: `vpipe export jobset | kubectl apply -f -`. Nothing is run or sent."""
    import json

    from vpipe_cli import config, yamltree
    from vpipe_cli.commands.launch import resolve_spec
    from vpipe_cli.kubernetes.jobset import manifest
    from vpipe_cli.runs.store import new_id
    from worker.errors import UsageError

    path, overrides = config.split(arguments or [])
    spec = config.load(Path(path), overrides)
    registry = "docker://"
    named = spec.container.image if spec.container and spec.container.image.startswith(registry) else ""
    if not (image or named):
        hint = "Kubernetes runs images of a registry: name one with --image"
        raise UsageError("the job has no container that is docker://NAME@sha256:DIGEST", hint)
    resolved, run = resolve_spec(spec, build=False), new_id(spec.name)
    named_run = resolved.model_copy(update={"run": run, "job": resolved.job.model_copy(update={"run": run})})
    objects = manifest(named_run, image or named.removeprefix(registry), claim, code)
    if output == "json":
        typer.echo(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}, indent=2))
    else:
        typer.echo("---\n".join(yamltree.dump(each) for each in objects), nl=False)
