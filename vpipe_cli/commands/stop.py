"""`vpipe stop`: end a run and say how it ended."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from vpipe_cli.commands import completing

RUN = "Id, name, or the beginning of an id. Default: the newest run of this folder."


def stop(
    run: Annotated[str | None, typer.Argument(autocompletion=completing.runs, metavar="[RUN]", help=RUN)] = None,
    output: Annotated[Literal["text", "json"], typer.Option("--output", "-o", help="The form to print.")] = "text",
) -> None:
    """End a run: its ranks are asked first, then forced. A run that has ended stays as it is."""
    from vpipe_cli.engines import ENGINES
    from vpipe_cli.runs.state import end_limit, standing, wait_for_end
    from vpipe_cli.runs.store import find
    from worker.errors import NotFinished
    from worker.spec.records import FINAL

    found = find(run)
    already = standing(found).state in FINAL
    if not already:
        ENGINES[found.engine].request_stop(found)
    limit = end_limit(found)
    state = wait_for_end(found, limit).state
    if state not in FINAL:
        hint = f"what it is doing is in {found.files.hostd_log}"
        raise NotFinished(f"run {found.id} was asked to stop but is still {state} after {limit:.0f} s", hint)
    if output == "json":
        document = {"schema": 1, "run": found.id, "folder": str(found.folder), "state": state, "already": already}
        typer.echo(json.dumps(document))
    elif state == "stopped" and not already:
        typer.echo(f"run {found.id} stopped")
    else:
        typer.echo(f"run {found.id} had ended before: {state}")
