"""From a job to a run that has begun, the one way there is: work out, check, start. Commands and sweeps go it alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vpipe_cli import config, machines, request
from vpipe_cli.engines import ENGINES
from vpipe_cli.launch import Launch, Surroundings, resolve
from vpipe_cli.runs import store
from vpipe_cli.runs.store import Run
from vpipe_cli.shipped import inside_here, to_ship
from worker.spec.cluster import ClusterSpec
from worker.spec.files import RunFiles

if TYPE_CHECKING:
    from vpipe_cli.checkpoints import Checkpoint
    from vpipe_cli.container.ship import Progress


def work_out(
    spec: ClusterSpec, *, build: bool = True, share: int = 1, line: Callable[[str], None] | None = None
) -> Launch:
    """The launch of a job as a new run of this machine. Raises what resolving it and building its image raise.

    Args:
        build: make its image if there is none; otherwise nothing is touched, and the run's name is always the same.
        share: how many such runs share this machine's cores.
        line: told what the build of an image prints.
    """
    run = store.new_id(spec.name) if build else f"{spec.name}-00000000-000000-0000"
    slots, shipped = machines.slots(spec.machines), to_ship(spec, build, line)
    here = Surroundings.here()
    here = replace(here, cores=max(1, here.cores // share), inside=inside_here(spec, build, line))
    return resolve(spec, run, RunFiles(store.folder_of(run)), slots, here, shipped=shipped)


def checked(launch: Launch) -> Launch:
    """The launch, once its engine has seen that it can run. Raises PreflightError, UnreachableError."""
    ENGINES[launch.job.spec.engine].check(launch)
    return launch


def made(
    launch: Launch,
    path: Path,
    overrides: Sequence[str],
    folder: Path | None = None,
    checkpoint: Checkpoint | None = None,
) -> Run:
    """The folder of a run that its engine is to start; the arguments are those of ``start``. Raises PreflightError."""
    run = store.create(launch.run, launch.job.spec.engine)
    request.keep(run.files, path, overrides, folder)
    if checkpoint:
        from vpipe_cli import checkpoints

        checkpoints.give(checkpoint, run.files)
    return run


def start(
    launch: Launch,
    path: Path,
    overrides: Sequence[str],
    folder: Path | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Run:
    """Start what was worked out and checked.

    Args:
        path: the cluster.yml it came from; ``overrides`` set values of it.
        folder: where relative paths of that file begin, if not beside it.
        checkpoint: what the run begins with.
        progress: told how far each host has the image.
    Raises:
        PreflightError, UnreachableError, ImageError, TransferError: it could not be started.
    """
    text = config.read(path)
    run = made(launch, path, overrides, folder, checkpoint)
    ENGINES[run.engine].start(run, launch, text, progress)
    return run
