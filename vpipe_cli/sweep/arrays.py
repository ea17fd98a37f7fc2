"""Trials of a sweep as tasks of one array of Slurm, which starts them in turn, so many at a time.

``array-N/`` in the sweep's folder holds the script, a link to its run's folder for each task, and ``job``, where sbatch
itself writes the array's number, so that a controller killed meanwhile loses none. It is locked as long as sbatch runs.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from vpipe_cli import config
from vpipe_cli.engines import ENGINES, SLURM
from vpipe_cli.launch import Launch
from vpipe_cli.runs import store
from vpipe_cli.runs.store import Run
from vpipe_cli.shipped import user_folder
from vpipe_cli.slurm import queue
from vpipe_cli.slurm.delivery import bring
from vpipe_cli.slurm.script import array_script
from vpipe_cli.sweep import runner
from vpipe_cli.sweep.files import SweepFiles
from vpipe_cli.sweep.records import Definition, Trial
from vpipe_cli.transport.local import LocalTransport
from worker.errors import PreflightError
from worker.spec.files import write_atomic

MOST = 256
"""Tasks of one array. Slurm takes 1000 where an admin did not change that; the controller has a file open for each."""
SBATCH_LIMIT = 60.0  # seconds


def submit(files: SweepFiles, definition: Definition, chosen: Sequence[tuple[Trial, Launch]]) -> list[Run]:
    """Start the chosen trials as one array: task i is the i-th. Raises PreflightError if Slurm refuses it."""
    folder = files.array(1 + len(list(_folders(files))))
    folder.mkdir(0o700)
    text = config.read(files.cluster)
    runs = [runner.made(definition, files, trial, launch) for trial, launch in chosen]
    with SLURM.queueing(runs):
        for spec in {(launch.image, user_folder(launch.job.spec)): launch.job.spec for _, launch in chosen}.values():
            bring(str(store.home()), spec)
        for task, (run, (_, launch)) in enumerate(zip(runs, chosen, strict=True)):
            SLURM.prepare(run, launch, text)
            (folder / str(task)).symlink_to(os.path.relpath(run.folder, folder))
        script = folder / "array.sh"
        write_atomic(script, array_script(chosen[0][1], str(folder), len(runs), definition.parallel))
        for run in runs:
            SLURM.waits(run)
        job = _sbatch(script)
        for task, run in enumerate(runs):
            SLURM.queued(run, f"{job}_{task}")
    return runs


def settle(files: SweepFiles, runs: Collection[str]) -> None:
    """Tell those of the runs which task they are that an earlier controller could not tell any more; those that it did
    not queue have ended. Raises PreflightError where sbatch still runs."""
    for folder in _folders(files):
        tasks = {Path(os.readlink(link)).name: link.name for link in folder.iterdir() if link.is_symlink()}
        for run_id in runs & tasks.keys():
            run = store.find(run_id)
            if SLURM.job(run):
                continue
            if job := _number_in(folder / "job"):
                SLURM.queued(run, f"{job}_{tasks[run_id]}")
            else:
                SLURM.never_begins(run, "whoever launched it was gone before it was queued")


def throttle(runs: Sequence[Run], parallel: int) -> None:
    """Let so many tasks of the arrays that these runs are of run at a time, which another command may have set."""
    for array in _arrays(runs):
        queue.run(LocalTransport(), "scontrol", "update", f"JobId={array}", f"ArrayTaskThrottle={parallel}")


def end(runs: Sequence[Run]) -> None:
    """Ask for the end of runs; tasks of an array are cancelled together. Raises UnreachableError as the engines do."""
    for run in runs:
        if _is_task(run):
            write_atomic(run.files.stop, "")
        else:
            ENGINES[run.engine].request_stop(run)
    end_waiting(runs)
    for array in _arrays(runs):
        queue.run(LocalTransport(), "scancel", "--state=RUNNING", "--signal=TERM", array)


def end_waiting(runs: Sequence[Run]) -> None:
    """Cancel the tasks that have not begun."""
    for array in _arrays(runs):
        before = queue.ask(LocalTransport(), array) or {}
        queue.run(LocalTransport(), "scancel", "--state=PENDING", array)
        if (after := queue.ask(LocalTransport(), array)) is None:
            continue
        for run in runs:
            job = SLURM.job(run)
            waited = job in before and before[job].state == "PENDING"
            if waited and (job not in after or after[job].has_ended):  # Slurm forgets such tasks at once
                SLURM.never_begins(run, "a stop was asked for while the job waited")


def _arrays(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(queue.array_of(SLURM.job(run)) for run in runs if _is_task(run)))


def _is_task(run: Run) -> bool:
    job = SLURM.job(run)
    return queue.array_of(job) != job


def _folders(files: SweepFiles) -> Iterator[Path]:
    number = 1
    while (folder := files.array(number)).exists():
        yield folder
        number += 1


def _sbatch(script: Path) -> str:
    """The number of the array. Raises PreflightError."""
    said = script.with_name("job")
    lock = os.open(said, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # sbatch has it too, and keeps it if this process is killed
        command = ["sbatch", "--parsable", str(script)]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=lock, stderr=subprocess.PIPE, timeout=SBATCH_LIMIT
        )
    except subprocess.TimeoutExpired:
        raise PreflightError(f"sbatch did not answer within {SBATCH_LIMIT:g} s", f"the script is {script}") from None
    finally:
        os.close(lock)
    if done.returncode:
        raise PreflightError(f"Slurm refuses the sweep: {queue.reason(done.stderr)}", f"the script is {script}")
    return _number_in(said)


def _number_in(said: Path) -> str:
    """What sbatch wrote there, once it has ended; empty if it queued nothing. Raises PreflightError."""
    with suppress(FileNotFoundError), said.open("rb") as file:
        deadline = time.monotonic() + SBATCH_LIMIT
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise PreflightError(f"the sbatch that writes {said} does not end") from None
                time.sleep(0.1)
            else:
                return file.read().decode(errors="replace").strip().partition(";")[0]
    return ""
