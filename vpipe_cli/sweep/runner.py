"""One trial as a run: started through the engine that `vpipe launch` uses, or found again where one was left."""

from __future__ import annotations

import os
from pathlib import Path

from vpipe_cli import config, starting
from vpipe_cli.engines import ENGINES, SLURM
from vpipe_cli.launch import Launch
from vpipe_cli.runs import store
from vpipe_cli.runs.state import standing
from vpipe_cli.runs.store import Run
from vpipe_cli.sweep.files import SweepFiles
from vpipe_cli.sweep.lanes import machines_setting
from vpipe_cli.sweep.records import Definition, Trial
from worker.errors import RunNotFound
from worker.spec.files import read_events
from worker.spec.records import FINAL


def overrides_of(definition: Definition, trial: Trial, lane: int) -> list[str]:
    """All values that are set for the trial, its lane's machines among them."""
    more = [machines_setting(definition.lanes[lane])] if definition.lanes else []
    return [*trial.overrides, *more]


def resolved(definition: Definition, files: SweepFiles, trial: Trial, lane: int = 0, check: bool = True) -> Launch:
    """The launch of a trial as a new run; its image is built where there is none. Raises what `vpipe launch` raises.

    Args:
        check: let the engine look at it.
    """
    spec = config.load(files.cluster, overrides_of(definition, trial, lane), Path(definition.folder))
    launch = starting.work_out(spec, share=definition.parallel)
    return starting.checked(launch) if check else launch


def start(definition: Definition, files: SweepFiles, trial: Trial, launch: Launch, lane: int = 0) -> Run:
    """Start what was resolved. Raises PreflightError if it cannot be started."""
    return starting.start(launch, files.cluster, overrides_of(definition, trial, lane), Path(definition.folder))


def made(definition: Definition, files: SweepFiles, trial: Trial, launch: Launch) -> Run:
    """The run of a trial that an array will start."""
    return starting.made(launch, files.cluster, overrides_of(definition, trial, 0), Path(definition.folder))


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
    return None if _never_began(run) else run


def _never_began(run: Run) -> bool:
    """Whether the run has ended before any machine, or Slurm, had it."""
    states = {event["state"] for event in read_events(run.files.events) if event.get("event") == "state"}
    return bool(states & FINAL) and states <= {"planning", "shipping", "pending", *FINAL} and not SLURM.job(run)


def be_there(folder: str) -> None:
    """Go to the folder the command was typed in, if it still is there."""
    if os.path.isdir(folder):
        os.chdir(folder)
