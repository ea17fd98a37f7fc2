"""`vpipe launch`: start the job of a cluster.yml, then watch it or leave it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from vpipe_cli.launch import Launch
    from vpipe_cli.runs.store import Run

DEFAULT = "cluster.yml"


def launch(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[CLUSTER.YML] [KEY=VALUE]...", help=f"Default: {DEFAULT}.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once the run has started.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run, and touch nothing.")] = False,
    output: Annotated[Literal["text", "json"], typer.Option("--output", "-o", help="The form to print.")] = "text",
) -> None:
    """Start the job of a cluster.yml and watch it. The run goes on when this command ends."""
    from vpipe_cli import config

    path, overrides = config.split(arguments or [])
    resolved = _resolve(path, overrides)
    if dry_run:
        _show(resolved, output)
        return
    run = _start(resolved, path)
    if detach:
        _introduce(run, output)
    else:
        _watch(run, output)


def _resolve(path: Path, overrides: list[str]) -> Launch:
    from vpipe_cli import config, machines
    from vpipe_cli.launch import Surroundings, resolve
    from vpipe_cli.runs.store import folder_of, new_id
    from worker.spec.files import RunFiles

    spec = config.load(path, overrides)
    run = new_id(spec.name)
    return resolve(spec, run, RunFiles(folder_of(run)), machines.slots(spec.machines), Surroundings.here())


def _show(resolved: Launch, output: str) -> None:
    from vpipe_cli.launch import describe

    typer.echo(resolved.model_dump_json(indent=2) if output == "json" else describe(resolved))


def _start(resolved: Launch, path: Path) -> Run:
    from vpipe_cli import config
    from vpipe_cli.engines import ENGINES
    from vpipe_cli.runs.store import create

    text = config.read(path)
    ENGINES[resolved.job.spec.engine].check(resolved)
    run = create(resolved.run, resolved.job.spec.engine)
    ENGINES[run.engine].start(run, resolved, text)
    return run


def _introduce(run: Run, output: str) -> None:
    if output == "json":
        _document(run)
    else:
        typer.echo(f"run {run.id} started; watch it: vpipe logs -f {run.id}; end it: vpipe stop {run.id}")


def _watch(run: Run, output: str) -> None:
    """Follow the run to its end, or until the user leaves it; exits with the code of its state."""
    from vpipe_cli.runs.state import EXIT_CODES
    from vpipe_cli.runs.watch import follow

    state = follow(run, output)
    if output == "json":
        _document(run)
    raise typer.Exit(EXIT_CODES.get(state, 0))


def _document(run: Run) -> None:
    from vpipe_cli.runs.state import status

    typer.echo(json.dumps({**status(run), "folder": str(run.folder)}))
