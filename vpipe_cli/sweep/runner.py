"""One trial as a run: started through the engine that `vpipe launch` uses, or found again where one was left."""

from __future__ import annotations

import os
from pathlib import Path

from vpipe_cli import config, starting
from vpipe_cli.engines import ENGINES
from vpipe_cli.launch import Launch
from vpipe_cli.runs import store
from vpipe_cli.runs.state import standing
from vpipe_cli.runs.store import Run
from vpipe_cli.sweep.files import SweepFiles
from vpipe_cli.sweep.lanes import machines_setting
from vpipe_cli.sweep.records import Definition, Trial
from worker.errors import RunNotFound


def overrides_of(definition: Definition, trial: Trial, lane: int) -> list[str]:
    """All values that are set for the trial, its lane's machines among them."""
    more = [machines_setting(definition.lanes[lane])] if definition.lanes else []
    return [*trial.overrides, *more]


def resolved(definition: Definition, files: SweepFiles, trial: Trial, lane: int = 0) -> Launch:
    """The launch of a trial as a new run, checked by its engine; its image is built where there is none. Raises what
    `vpipe launch` raises."""
    spec = config.load(files.cluster, overrides_of(definition, trial, lane), Path(definition.folder))
    return starting.checked(starting.work_out(spec, share=definition.parallel))


def start(definition: Definition, files: SweepFiles, trial: Trial, launch: Launch, lane: int = 0) -> Run:
    """Start what was resolved. Raises PreflightError if it cannot be started."""
    return starting.start(launch, files.cluster, overrides_of(definition, trial, lane), Path(definition.folder))


def again(run_id: str) -> Run | None:
    """The run that a trial was given before, if it began; what hangs half way between is told never to begin."""
    try:
        run = store.find(run_id)
    except RunNotFound:
        return None
    if run.id != run_id:
        return None
    if standing(run).state == "planning":
        ENGINES[run.engine].request_stop(run)
    return run


def be_there(folder: str) -> None:
    """Go to the folder the command was typed in, if it still is there."""
    if os.path.isdir(folder):
        os.chdir(folder)
