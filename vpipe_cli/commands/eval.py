"""`vpipe eval`: measure a checkpoint, on the pipeline it was trained on or another."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from vpipe_cli.runs.store import Run


def eval(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN][@STEP]|FOLDER [KEY=VALUE]...", help="default: the newest run of this folder"),
    ] = None,
    output: Annotated[Literal["text", "json"], typer.Option("-o", "--output", help="what to print")] = "text",
) -> None:
    """Measure a checkpoint, of a run or in a FOLDER: loss, perplexity, accuracy, BLEU. Keys: evaluate.minibatches,
    evaluate.held_out, evaluate.bleu, any other."""
    from vpipe_cli import checkpoints
    from vpipe_cli.runs.evaluations import newest
    from vpipe_cli.runs.state import EXIT_CODES
    from vpipe_cli.runs.watch import follow
    from worker.errors import NotFinished

    given = list(arguments or [])
    path = checkpoints.folder(given[0]) if given else None
    asked = given.pop(0) if given and (path or "=" not in given[0]) else None
    given.append("evaluate.only=true")
    measured, of = _of_folder(path, str(asked), given) if path else _of_run(asked, given)
    state = follow(measured, "json")
    found = newest(measured.files)
    if state != "succeeded" or found is None:
        raise typer.Exit(EXIT_CODES.get(state, NotFinished.exit_code))
    if output == "json":
        document = {"schema": 1, "run": measured.id, "of": of, "evaluation": found.model_dump()}
        typer.echo(json.dumps(document))
    else:
        typer.echo(f"{of}: {found}")


def _of_run(asked: str | None, given: list[str]) -> tuple[Run, str]:
    """Start to measure a checkpoint of a run; the run that does it, and the one that is measured."""
    from vpipe_cli import checkpoints, request
    from vpipe_cli.commands.launch import checkpoint_of, resolve_spec, start

    run, _ = checkpoints.split(asked)
    spec, every, folder = request.load(run.files, given)
    resolved = resolve_spec(spec)
    return start(resolved, run.files.cluster, every, folder, checkpoint_of(asked or run.id, resolved)), run.id


def _of_folder(path: Path, asked: str, given: list[str]) -> tuple[Run, str]:
    """The same of a checkpoint wherever it lies; what it says of its job is all that is known of it."""
    from vpipe_cli import checkpoints, config, request
    from vpipe_cli.commands.launch import checkpoint_of, resolve_spec, start

    with TemporaryDirectory() as aside:
        file = Path(aside) / "job-of-the-checkpoint.yml"
        request.write(checkpoints.at(path, asked).manifest, file)
        resolved = resolve_spec(config.load(file, given, Path.cwd()))
        return start(resolved, file, given, Path.cwd(), checkpoint_of(asked, resolved)), asked
