"""vpipe image build, ship, ls, verify, prune: what ranks run in, made here and kept on every machine."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from worker.spec.cluster import ClusterSpec

image = typer.Typer(no_args_is_help=True)

Output = Annotated[Literal["text", "json"], typer.Option("-o", "--output", help="what to print")]
Given = Annotated[
    list[str] | None,
    typer.Argument(metavar="[CLUSTER.yml] [KEY=VALUE]...", help="the job whose machines are meant; default: this one"),
]
Job = Annotated[
    list[str] | None, typer.Argument(metavar="[CLUSTER.yml] [KEY=VALUE]...", help="the job; default: ./cluster.yml")
]


@image.command()
def build(
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE.def | CLUSTER.yml] [NAME=VALUE]...",
            help="a definition with values for its {{ NAME }}s, or the job whose `container` names one",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="build it even if nothing changed here")] = False,
    output: Output = "text",
) -> None:
    """Build an image, unless it was built before from the same definition, files and Apptainer."""
    from vpipe_cli.container.build import prepare
    from vpipe_cli.container.request import wanted
    from vpipe_cli.render import text
    from vpipe_cli.render.images import Building

    name, arguments = wanted(given or [])
    with Building() as building:
        made = prepare(name, arguments, building, force=force)
    if output == "json":
        document = {"path": str(made.path), "sha256": made.sha256, "size": made.size, "built": made.built}
        typer.echo(json.dumps({"schema": 1, **document}))
    else:
        how = "built" if made.built else "nothing changed;"
        typer.echo(f"{how} {made.path} ({text.size(made.size)})")


@image.command()
def ship(
    given: Job = None,
    repair: Annotated[bool, typer.Option("--repair", help="replace an image that is damaged on a machine")] = False,
    output: Output = "text",
) -> None:
    """Bring the image of a job to all its machines; nothing is sent to those that have it."""
    from vpipe_cli import config
    from vpipe_cli.container.build import prepare
    from vpipe_cli.container.fleet import reached
    from vpipe_cli.container.request import of_job
    from vpipe_cli.container.ship import Step
    from vpipe_cli.container.ship import ship as bring
    from vpipe_cli.render.images import Building, Shipping

    spec = config.load(*config.split(given or []))
    with Building() as building:
        made = prepare(*of_job(spec), building)
    last: dict[str, Step] = {}
    with reached(spec) as hosts, Shipping() as shipping:

        def follow(step: Step) -> None:
            last[step.host] = step
            shipping(step)

        paths = bring(hosts, made.path, made.sha256, follow, repair=repair)
    if output == "json":
        rows = [
            {"host": host, "path": path, "from": (last[host].via or None) if host in last else None}
            for host, path in paths.items()
        ]
        typer.echo(json.dumps({"schema": 1, "sha256": made.sha256, "size": made.size, "hosts": rows}))


@image.command()
def ls(given: Given = None, output: Output = "text") -> None:
    """List the images of this machine, or of all machines of a job."""
    _show(given, {"do": "list"}, output)


@image.command()
def verify(given: Given = None, output: Output = "text") -> None:
    """Read every image whole and compare it with its name; exit status 106 if one is damaged."""
    found = _show(given, {"do": "verify"}, output)
    if any(not entry["ok"] for answer in found.values() for entry in answer["images"]):
        raise typer.Exit(106)


@image.command()
def prune(
    given: Given = None,
    keep: Annotated[int | None, typer.Option("--keep", min=0, help="images to keep, those used last")] = None,
    max_size: Annotated[str | None, typer.Option("--max-size", help="what all may take together: 500M, 20G")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would go")] = False,
    output: Output = "text",
) -> None:
    """Remove images that were not used for the longest time; never one that a run is using."""
    from vpipe_cli.container.fleet import everywhere, reached
    from vpipe_cli.container.request import bytes_of
    from vpipe_cli.render import images
    from vpipe_cli.render.console import show
    from worker.errors import UsageError

    if keep is None and max_size is None:
        raise UsageError("say what may stay", "--keep 3, or --max-size 20G")
    request = {"do": "prune", "keep": keep, "max_bytes": bytes_of(max_size), "dry_run": dry_run}
    with reached(_job(given)) as hosts:
        found = everywhere(hosts, request)
    if output == "json":
        typer.echo(json.dumps({"schema": 1, "dry_run": dry_run, "hosts": found}))
    else:
        show(images.pruned(found))


def _show(given: list[str] | None, request: dict[str, Any], output: str) -> dict[str, dict[str, Any]]:
    from vpipe_cli.container.fleet import everywhere, reached
    from vpipe_cli.container.store import sources
    from vpipe_cli.render import images
    from vpipe_cli.render.console import show

    with reached(_job(given)) as hosts:
        found = everywhere(hosts, request)
    if output == "json":
        typer.echo(json.dumps({"schema": 1, "hosts": found}))
    elif any(answer["images"] for answer in found.values()):
        rows = {host: answer["images"] for host, answer in found.items()}
        show(images.listed(rows, sources(), time.time()))
    else:
        typer.echo("no image yet", err=True)
    return found


def _job(given: list[str] | None) -> ClusterSpec | None:
    """The job named; None means this machine."""
    from vpipe_cli import config

    return config.load(*config.split(given)) if given else None
