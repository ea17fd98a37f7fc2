"""One trial as a run: started through the engine that `vpipe launch` uses, or found again where one was left."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from vpipe_cli import config, machines, request
from vpipe_cli.engines import ENGINES
from vpipe_cli.engines.base import Engine
from vpipe_cli.launch import Launch, Surroundings, resolve
from vpipe_cli.runs import store
from vpipe_cli.runs.state import standing
from vpipe_cli.runs.store import Run
from vpipe_cli.sweep.files import SweepFiles
from vpipe_cli.sweep.lanes import machines_setting
from vpipe_cli.sweep.records import Definition, Trial
from worker.errors import PreflightError, RunNotFound
from worker.spec.cluster import ClusterSpec
from worker.spec.files import RunFiles


def overrides_of(definition: Definition, trial: Trial, lane: int) -> list[str]:
    """All values that are set for the trial, its lane's machines among them."""
    more = [machines_setting(definition.lanes[lane])] if definition.lanes else []
    return [*trial.overrides, *more]


def resolved(definition: Definition, files: SweepFiles, trial: Trial, lane: int = 0) -> Launch:
    """The launch of a trial as a new run, checked by its engine. Writes nothing. Raises what `vpipe launch` raises."""
    spec = config.load(files.cluster, overrides_of(definition, trial, lane), Path(definition.folder))
    run = store.new_id(spec.name)
    here = Surroundings.here()
    here = replace(here, cores=max(1, here.cores // definition.parallel))
    launch = resolve(spec, run, RunFiles(store.folder_of(run)), machines.slots(spec.machines), here)
    engine(spec).check(launch)
    return launch


def start(definition: Definition, files: SweepFiles, trial: Trial, launch: Launch, lane: int = 0) -> Run:
    """Start what was resolved. Raises PreflightError if it cannot be started."""
    run = store.create(launch.run, launch.job.spec.engine)
    request.keep(run.files, files.cluster, overrides_of(definition, trial, lane), Path(definition.folder))
    engine(launch.job.spec).start(run, launch, config.read(files.cluster))
    return run


def engine(spec: ClusterSpec) -> Engine:
    """The engine that cluster.yml names. Raises PreflightError where this version has none."""
    if spec.engine not in ENGINES:
        raise PreflightError(f"this version has no engine {spec.engine}", f"it has {', '.join(ENGINES)}")
    return ENGINES[spec.engine]


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
