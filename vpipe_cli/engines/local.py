"""Runs on this machine: one hostd, a process per rank."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vpipe_cli import profiles
from vpipe_cli.container.ship import Progress
from vpipe_cli.launch import Launch
from vpipe_cli.machines import HERE
from vpipe_cli.placing import scratch_of
from vpipe_cli.runs.store import Run
from vpipe_cli.transport.local import LocalTransport
from worker import errors
from worker.errors import PreflightError
from worker.spec.files import RunFiles, append_event, read_events, write_atomic
from worker.spec.records import State

HOSTD = Path(errors.__file__).with_name("hostd")
START_LIMIT = 10.0  # seconds for hostd to write its first event; it needs a fraction of one


class LocalEngine:
    """The local engine: the run's lock says who lives, the file ``stop`` says who shall not."""

    def check(self, launch: Launch) -> None:
        """Refuse what this machine cannot run, before anything is written. Raises PreflightError."""
        if gpus := [rank for rank in launch.ranks if rank.device != "cpu"]:
            raise PreflightError(
                f"rank {gpus[0].rank} is placed on {gpus[0].device}, but this version trains on CPU slots only",
                "write machines: [cpu*N]; docs/roadmap.md says what is not there yet",
            )
        if launch.job.spec.container is not None:
            from vpipe_cli.doctor import examine, refuse

            refuse(examine({HERE: LocalTransport()}, launch.job.spec, quick=True))

    def start(self, run: Run, launch: Launch, cluster: str, progress: Progress | None = None) -> None:
        """Write the run's files and start hostd. Raises PreflightError with what hostd had to say."""
        try:
            write_files(run.files, launch, cluster)
            if launch.job.spec.container is not None:
                _make_room(run.files, launch)
            problem = _start_hostd(run.files)
        except OSError as error:
            problem = str(error)
        except KeyboardInterrupt:
            self._abandon(run, "stopped")
            raise
        if problem:
            self._abandon(run, "failed")
            raise PreflightError(f"run {run.id} could not be started: {problem}", f"its files are in {run.folder}")

    def refresh(self, run: Run, wait: float | None = None) -> None:
        """Nothing to do: the run's folder is here."""

    def alive(self, run: Run) -> bool:
        """Whether hostd, or a rank that outlived it, holds the run's lock."""
        return is_locked(run.files.lock)

    def request_stop(self, run: Run) -> None:
        """Write the file ``stop``, durably: hostd sees it within a fraction of a second, or does not begin at all."""
        self._end(run, "stopped")

    def _end(self, run: Run, state: State) -> None:
        """Ask for the end; a run that no hostd has begun has ended with that. hostd locks first, then looks for the
        file, and here it is written before the lock is tried: one of the two sees the other."""
        write_atomic(run.files.stop, "")
        if self.alive(run) or any(event.get("state") != "planning" for event in read_events(run.files.events)):
            return
        append_event(run.files.events, {"time": time.time(), "event": "state", "state": state, "attempt": 1})

    def _abandon(self, run: Run, state: State) -> None:
        """Leave no run behind that waits to begin."""
        with suppress(OSError):  # a full disk, which is what the user is told
            self._end(run, state)


def is_locked(path: Path) -> bool:
    """Whether any process holds the lock."""
    try:
        lock = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


@contextmanager
def launching(run: Run) -> Iterator[None]:
    """Hold the run's lock on this machine while it is being launched; whoever kills this process lets go of it."""
    lock = os.open(run.files.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def write_files(files: RunFiles, launch: Launch, cluster: str) -> None:
    """What a launch leaves in the run's folder before anything starts. Raises OSError."""
    files.metrics(0).parent.mkdir(mode=0o700)
    write_atomic(files.cluster, cluster)
    write_atomic(files.job, launch.job.model_dump_json(indent=2) + "\n")
    write_atomic(files.plan, launch.job.plan.model_dump_json(indent=2) + "\n")
    write_atomic(files.launch, launch.model_dump_json(indent=2) + "\n")


def _make_room(files: RunFiles, launch: Launch) -> None:
    """The folders that containers are given, without which they would not start. Raises OSError."""
    for folder in [profiles.cache().parent, *(scratch_of(files, rank.rank) for rank in launch.ranks)]:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _start_hostd(files: RunFiles) -> str:
    """Empty once hostd has detached and begun, otherwise why it did not."""
    command = [sys.executable, "-I", "-S", str(HOSTD), str(files.launch)]
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "start_new_session": True}
    try:
        done = subprocess.run(command, timeout=START_LIMIT, **options)
    except subprocess.TimeoutExpired:
        return f"hostd did not begin within {START_LIMIT:g} s"
    if done.returncode == 0:
        return ""
    said = done.stderr.decode(errors="replace").strip()
    return "\n".join([said, *_tail(files.hostd_log)])


def _tail(path: Path, lines: int = 10) -> list[str]:
    return path.read_text(errors="replace").splitlines()[-lines:] if path.exists() else []
