"""Starts the controller of a sweep as a process of its own, and asks it to stop."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import vpipe_cli
from vpipe_cli.sweep import store
from vpipe_cli.sweep.controller import TAKEN
from vpipe_cli.sweep.files import SweepFiles
from worker.errors import NotFinished, PreflightError
from worker.spec.files import write_atomic

HOME = "VPIPE_CODE"
CODE = f"""import os, sys
sys.path[0] = os.environ.pop("{HOME}")
from pathlib import Path
from vpipe_cli.sweep.controller import main
os._exit(main(Path(sys.argv[1]), detach=True))
"""
"""Python with ``-m`` would take this folder's own modules for ours; here ours come first."""
START_LIMIT = 30.0  # seconds for the controller to take over; it needs about one


def start(files: SweepFiles) -> None:
    """Return once a controller runs the sweep, whoever started it. Raises PreflightError with what it had to say."""
    command = [sys.executable, "-c", CODE, str(files.folder)]
    env = {**os.environ, HOME: str(Path(vpipe_cli.__file__).parent.parent)}
    try:
        with open(os.open(files.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as log:
            options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "env": env}
            ended = subprocess.run(command, start_new_session=True, timeout=START_LIMIT, **options)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PreflightError(f"the sweep's controller cannot be started: {error}", f"its log is {files.log}") from error
    if ended.returncode not in (0, TAKEN):
        raise PreflightError(f"the sweep's controller did not begin: {_last_words(files)}", f"its log is {files.log}")


def request_stop(files: SweepFiles, after: bool = False) -> None:
    """Ask for the end of the sweep: of the running trials too, or after them."""
    write_atomic(files.stop, "after" if after else "now")


def why_gone(files: SweepFiles) -> str:
    """Why a sweep has no controller that was not told to go."""
    try:
        free = shutil.disk_usage(files.folder).free
    except OSError as error:
        return str(error)
    if free < 1 << 20:
        return f"the disk of {files.folder} is full"
    return _last_words(files) or "it was killed, or the machine went down"


def _last_words(files: SweepFiles) -> str:
    try:
        said = files.log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return said[-1] if said else ""


def wait_for_end(files: SweepFiles, limit: float = 60.0) -> None:
    """Return once no controller runs the sweep. Raises NotFinished after ``limit`` seconds."""
    deadline = time.monotonic() + limit
    while store.is_alive(files):
        if time.monotonic() > deadline:
            raise NotFinished(
                f"sweep {files.folder.name} was asked to stop but still runs after {limit:.0f} s", f"see {files.log}"
            )
        time.sleep(0.1)
