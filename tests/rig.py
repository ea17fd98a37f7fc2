"""A run folder whose ranks are small programs, and a real hostd that runs them: no torch, no planner."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worker import hostd
from worker.hostd.processes import find_strays
from worker.spec.files import RunFiles, read_events
from worker.spec.records import FINAL, RankExit

HOSTD = Path(hostd.__file__).parent
READY = "import os, sys, time, pathlib; pathlib.Path(os.environ['READY']).touch()\n"
SLEEP = READY + "time.sleep(60)"
SLOW = pytest.mark.skipif(not os.environ.get("VPIPE_SLOW"), reason="takes longer than it tells: VPIPE_SLOW=1 runs it")
"""Of what other cases of the same test show nearly as well."""


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first true value of ``condition``."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.02)
    return value


class Rig:
    """A run folder whose ranks are the programs given, and the hostd that runs them."""

    def __init__(self, folder: Path) -> None:
        self.files = RunFiles(folder)
        self.id = f"rig-{os.getpid()}-{folder.name}-{time.time_ns()}"

    def write(self, *programs: str, grace: float = 5.0, **more: Any) -> None:
        """launch.json for one rank per program; ``more`` is what else it shall say."""
        files, ranks = self.files, []
        files.folder.mkdir(mode=0o700)
        for rank, program in enumerate(programs):
            ready, error = str(files.ready(1, rank)), str(files.error(1, rank))
            paths = {"log": str(files.log(1, rank)), "error": error, "ready": ready, "exit": str(files.exit(1, rank))}
            paths |= {"progress": str(files.progress(1, rank)), "stacks": str(files.stacks(1, rank))}
            env = {"PATH": os.environ["PATH"], "READY": ready, "ERROR": error, "HERE": str(files.folder)}
            place = {"rank": rank, "stage": rank, "host": "localhost", "device": "cpu", "cwd": str(files.folder)}
            ranks.append({**place, **paths, "argv": [sys.executable, "-S", "-c", program], "env": env})
        paths = {"lock": str(files.lock), "stop": str(files.stop), "events": str(files.events)}
        paths |= {"hostd_log": str(files.hostd_log), "attempt_folder": str(files.attempt(1))}
        files.launch.write_text(
            json.dumps({"run": self.id, "attempt": 1, "grace": grace, "ranks": ranks, **paths, **more})
        )

    def hostd(self) -> subprocess.CompletedProcess[str]:
        """Start a hostd and wait until it says whether it began."""
        command = [sys.executable, str(HOSTD), str(self.files.launch)]
        return subprocess.run(command, capture_output=True, text=True, timeout=20)

    def start(self, *programs: str, grace: float = 5.0, **more: Any) -> None:
        self.write(*programs, grace=grace, **more)
        done = self.hostd()
        assert done.returncode == 0, done.stderr

    def events(self, kind: str = "state") -> list[dict[str, Any]]:
        return [event for event in read_events(self.files.events) if event["event"] == kind]

    def states(self) -> list[str]:
        return [event["state"] for event in self.events()]

    def end(self) -> dict[str, Any]:
        """The final event, once it is there."""
        return wait_for(lambda: next((event for event in self.events() if event["state"] in FINAL), None))

    def exit(self, rank: int) -> RankExit:
        return RankExit.model_validate_json(self.files.exit(1, rank).read_text())

    def log(self, rank: int) -> list[bytes]:
        """The records of the rank's log, each with its newline."""
        return re.findall(rb"[^\n]*\n", self.files.log(1, rank).read_bytes())

    def text(self, rank: int) -> bytes:
        """What the rank printed, without the stamps."""
        return b"".join(line.split(b" ", 2)[2] for line in self.log(rank))

    def pids(self) -> list[int]:
        return [event["pid"] for event in self.events("rank-start")]

    def with_token(self) -> list[int]:
        return with_token(self.id)

    def kill_all(self) -> None:
        """Whatever a failed test may have left."""
        for pid in [event["hostd"] for event in self.events() if "hostd" in event] + self.with_token():
            if str(self.files.folder).encode() in _read(f"/proc/{pid}/cmdline") + _read(f"/proc/{pid}/environ"):
                os.kill(pid, signal.SIGKILL)


def with_token(run: str) -> list[int]:
    """Processes of this machine, its namespaces included, that carry the run's token."""
    return [pid for pid in find_strays(run) if not is_child(pid)]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def is_child(pid: int) -> bool:
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[1:2] == [str(os.getpid()).encode()]


def gone(pid: int) -> bool:
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[:1] in ([], [b"Z"])
