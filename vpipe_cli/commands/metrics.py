"""`vpipe metrics`: a run's numbers for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vpipe_cli.commands import completing

RUN = "id, name, or the beginning of an id; default: the newest run of this folder"


def metrics(
    run: Annotated[
        str | None, typer.Argument(autocompletion=completing.runs, metavar="[RUN]", help=RUN, show_default=False)
    ] = None,
    form: Annotated[
        Literal["openmetrics", "jsonl", "tensorboard"],
        typer.Option("--format", help="openmetrics: how it stands, for Prometheus; the others: every step"),
    ] = "openmetrics",
    to: Annotated[
        Path | None, typer.Option("--to", help="the file to write, whole or not at all; of tensorboard, the folder")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="write it anew until the run ends")] = False,
) -> None:
    """Write a run's numbers for Prometheus, TensorBoard, or as JSON lines."""
    import time

    from vpipe_cli.runs import exporting
    from vpipe_cli.runs.state import standing
    from vpipe_cli.runs.store import find
    from worker.errors import UsageError
    from worker.spec.records import FINAL

    found = find(run)
    if to is None and (form == "tensorboard" or follow):
        raise UsageError(f"--{'follow' if follow else 'format tensorboard'} needs a place to write: --to PATH")
    while True:
        ended = standing(found).state in FINAL  # before reading: what was written before the end is then read
        if to is None:
            typer.echo(exporting.text(found, form), nl=False)
        else:
            written = exporting.write(found, form, to)
        if ended or not follow:
            break
        time.sleep(exporting.AGAIN)
    if to is not None:
        typer.echo(f"wrote {written}", err=True)
