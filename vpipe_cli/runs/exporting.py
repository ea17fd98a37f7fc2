"""A run's numbers in the forms of other programs, as text or as files."""

from __future__ import annotations

import json
import os
from pathlib import Path

from vpipe_cli.runs import openmetrics, tensorboard
from vpipe_cli.runs.scalars import scalars
from vpipe_cli.runs.store import Run
from worker.errors import UsageError

AGAIN = 5.0
"""Seconds between two files of a run that goes on."""


def text(run: Run, form: str) -> str:
    """``openmetrics``, or ``jsonl`` with one object for each number. Raises NotFinished if there are none yet."""
    if form == "openmetrics":
        return openmetrics.text(run)
    names = ("time", "step", "tag", "value")
    return "".join(json.dumps(dict(zip(names, each, strict=True))) + "\n" for each in scalars(run))


def write(run: Run, form: str, to: Path) -> Path:
    """Write them so that no reader sees half of it; the file. Raises UsageError if that cannot be done."""
    path = to / run.id / "events.out.tfevents.1.vpipe" if form == "tensorboard" else to
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if form == "tensorboard":
            tensorboard.write(aside, scalars(run))
        else:
            aside.write_text(text(run, form))
        os.replace(aside, path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from None
    return path
