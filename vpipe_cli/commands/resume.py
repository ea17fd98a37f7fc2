"""`vpipe resume`: go on from a checkpoint of a run that has ended, as a new run."""

from __future__ import annotations

from typing import Annotated, Literal

import typer


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
    from vpipe_cli import checkpoints, request
    from vpipe_cli.commands.launch import begin, resolve_spec
    from vpipe_cli.runs.state import standing
    from worker.errors import NotFinished
    from worker.spec.records import FINAL

    given = list(arguments or [])
    asked = given.pop(0) if given and "=" not in given[0] else None
    run, _ = checkpoints.split(asked)
    if (state := standing(run).state) not in FINAL:
        raise NotFinished(f"run {run.id} is {state}", f"`vpipe stop {run.id}` ends it")
    spec, every, folder = request.load(run.files, given)
    begin(resolve_spec(spec), run.files.cluster, every, folder, asked or run.id, detach, dry_run, output)
