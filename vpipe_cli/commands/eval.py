"""`vpipe eval`: measure a checkpoint of a run, on the pipeline it was trained on or another."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer


def eval(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN][@STEP] [KEY=VALUE]...", help="default: the newest run of this folder"),
    ] = None,
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output", help="what to print")] = "text",
) -> None:
    """Measure a checkpoint: loss, perplexity, accuracy. Keys: evaluate.minibatches, evaluate.held_out, any other."""
    from vpipe_cli import checkpoints, request
    from vpipe_cli.commands.launch import checkpoint_of, resolve_spec, start
    from vpipe_cli.runs.evaluations import newest
    from vpipe_cli.runs.state import EXIT_CODES
    from vpipe_cli.runs.watch import follow
    from worker.errors import NotFinished

    given = list(arguments or [])
    asked = given.pop(0) if given and "=" not in given[0] else None
    run, _ = checkpoints.split(asked)
    spec, every, folder = request.load(run.files, [*given, "evaluate.only=true"])
    resolved = resolve_spec(spec)
    measured = start(resolved, run.files.cluster, every, folder, checkpoint_of(asked or run.id, resolved))
    state = follow(measured, "json")
    found = newest(measured.files)
    if state != "succeeded" or found is None:
        raise typer.Exit(EXIT_CODES.get(state, NotFinished.exit_code))
    if output == "json":
        document = {"schema": 1, "run": measured.id, "of": run.id, "evaluation": found.model_dump()}
        typer.echo(json.dumps(document))
    else:
        typer.echo(f"{run.id}: {found}")
