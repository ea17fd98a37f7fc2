"""`vpipe resume`: go on from a checkpoint of a run that has ended, as a new run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from vpipe_cli.runs.store import Run


def resume(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN][@STEP] [KEY=VALUE]...", help="default: the newest run of this folder"),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once the run has started.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run, and touch nothing.")] = False,
    output: Annotated[Literal["text", "json"], typer.Option("--output", "-o", help="The form to print.")] = "text",
) -> None:
    """Go on from the newest checkpoint of a run, or from that of a step, as a new run of the same job."""
    from vpipe_cli import checkpoints
    from vpipe_cli.runs.state import standing
    from worker.errors import NotFinished
    from worker.spec.records import FINAL

    given = list(arguments or [])
    asked = given.pop(0) if given and "=" not in given[0] else None
    run, _ = checkpoints.split(asked)
    if (state := standing(run).state) not in FINAL:
        raise NotFinished(f"run {run.id} is {state}", f"`vpipe stop {run.id}` ends it")
    _go_on(run, asked or run.id, given, _left(run, given), detach, dry_run, output)


def on_what_is_left(run: Run, output: str) -> None:
    """Go on without the machines that a run has lost, if it has lost any and its job may do without, and exit."""
    from worker.errors import VpipeError

    try:
        if left := _left(run, []):
            _go_on(run, run.id, [], left, False, False, output)
    except VpipeError as error:  # what counts is how the run ended
        typer.echo(f"cannot go on by itself: {error}", err=True)


def _left(run: Run, given: list[str]) -> list[str]:
    """What to set so that the job runs on those of its machines that answer; says so."""
    from vpipe_cli import remaining, request

    spec, _, _ = request.load(run.files, given)
    if not remaining.wanted(spec):
        return []
    left = remaining.answering(spec)
    for line in left.told:
        typer.echo(line, err=True)
    return left.overrides


def _go_on(run: Run, origin: str, given: list[str], left: list[str], detach: bool, dry_run: bool, output: str) -> None:
    from vpipe_cli import request
    from vpipe_cli.commands.launch import begin, resolve_spec

    spec, every, folder = request.load(run.files, [*given, *left])
    begin(resolve_spec(spec), run.files.cluster, every, folder, origin, detach, dry_run, output)
