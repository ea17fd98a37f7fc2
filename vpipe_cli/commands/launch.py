"""`vpipe launch`: start the job of a cluster.yml, then watch it or leave it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vpipe_cli.commands import completing

if TYPE_CHECKING:
    from vpipe_cli.checkpoints import Checkpoint
    from vpipe_cli.launch import Launch
    from vpipe_cli.runs.store import Run
    from worker.spec.cluster import ClusterSpec

DEFAULT = "cluster.yml"


def launch(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            autocompletion=completing.settings, metavar="[CLUSTER.YML] [KEY=VALUE]...", help=f"Default: {DEFAULT}."
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once the run has started.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run, and touch nothing.")] = False,
    output: Annotated[Literal["text", "json"], typer.Option("--output", "-o", help="The form to print.")] = "text",
    origin: Annotated[
        str | None, typer.Option("--from", metavar="RUN[@STEP]", help="Begin with a checkpoint of another run.")
    ] = None,
) -> None:
    """Start the job of a cluster.yml and watch it. The run goes on when this command ends."""
    from vpipe_cli import config

    path, overrides = config.split(arguments or [])
    resolved = resolve_spec(config.load(path, overrides), build=not dry_run)
    begin(resolved, path, overrides, None, origin, detach, dry_run, output)


def begin(
    resolved: Launch,
    path: Path,
    overrides: list[str],
    folder: Path | None,
    origin: str | None,
    detach: bool,
    dry_run: bool,
    output: str,
) -> None:
    """Start what was resolved from the file ``path``, with a checkpoint if ``origin`` names one, and watch it."""
    checkpoint = checkpoint_of(origin, resolved) if origin else None
    if dry_run:
        _show(resolved, output)
        return
    run = start(resolved, path, overrides, folder, checkpoint)
    if detach:
        _introduce(run, output)
    else:
        _watch(run, output)


def checkpoint_of(origin: str, resolved: Launch) -> Checkpoint:
    """The checkpoint to begin with; says which it is, and what will be another than it was."""
    from vpipe_cli import checkpoints

    found, passed = checkpoints.brought(origin)
    changes = checkpoints.fit(found, resolved.job)
    for line in [*passed, *checkpoints.told(found.name, changes)]:
        typer.echo(line, err=True)
    return found


def resolve_spec(spec: ClusterSpec, build: bool = True) -> Launch:
    """The launch of a job as a new run of this machine; a build of its image is shown on standard error."""
    from vpipe_cli.render.images import Building
    from vpipe_cli.starting import work_out

    with Building() as building:
        return work_out(spec, build=build, line=building)


def _show(resolved: Launch, output: str) -> None:
    from vpipe_cli.launch import describe
    from vpipe_cli.sanitize import clean

    if output == "json":
        typer.echo(resolved.model_dump_json(indent=2))
    else:
        typer.echo("\n".join(map(clean, describe(resolved).split("\n"))))


def start(
    resolved: Launch, path: Path, overrides: list[str], folder: Path | None, checkpoint: Checkpoint | None
) -> Run:
    """Check and start what was resolved; an image on its way to its hosts is shown on standard error."""
    from vpipe_cli import starting
    from vpipe_cli.render.images import Shipping

    starting.checked(resolved)
    if not (resolved.head and resolved.image):
        return starting.start(resolved, path, overrides, folder, checkpoint)
    with Shipping(only_news=True) as shipping:
        return starting.start(resolved, path, overrides, folder, checkpoint, shipping)


def _introduce(run: Run, output: str) -> None:
    if output == "json":
        _document(run)
    else:
        typer.echo(f"run {run.id} started; watch it: vpipe logs -f {run.id}; end it: vpipe stop {run.id}")


def _watch(run: Run, output: str) -> None:
    """Follow the run to its end, or until the user leaves it; exits with the code of its state. Where it ended because
    of a machine that the job may do without, the next run goes on."""
    from vpipe_cli.commands.resume import on_what_is_left
    from vpipe_cli.runs.state import EXIT_CODES
    from vpipe_cli.runs.watch import follow

    state = follow(run, output)
    if state in ("failed", "lost"):
        on_what_is_left(run, output)
    if output == "json":
        _document(run)
    raise typer.Exit(EXIT_CODES.get(state, 0))


def _document(run: Run) -> None:
    from vpipe_cli.runs.state import status

    typer.echo(json.dumps({**status(run), "folder": str(run.folder)}))
