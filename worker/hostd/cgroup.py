"""A control group for the ranks of one machine, where this user may make one: what they start stays in it.

So it finds even what has dropped the run's token and lost its parents. It needs version 2, a part of the tree that is
delegated to the user (as that of a user's services under systemd is), and Linux 5.14; no controller of it is used.
"""

from __future__ import annotations

import os
import re

KILL, EVENTS, PROCESSES = "cgroup.kill", "cgroup.events", "cgroup.procs"


class ControlGroup:
    """That of a run on this machine, below the one of this process. Where there can be none, nothing happens."""

    def __init__(self, run: str, host: str) -> None:
        name = re.sub(r"[^\w.-]", "_", f"vpipe-{run}-{host}")[:250]
        own = _own()
        self.folder = os.path.join(own, name) if own else ""

    def make(self) -> None:
        """Make it, if it is not there."""
        try:
            os.mkdir(self.folder, 0o700)
        except OSError:
            return
        if not os.path.exists(os.path.join(self.folder, KILL)):
            self.remove()

    def enter(self) -> None:
        """For a child to call between fork and exec."""
        self._write(PROCESSES, b"0")

    def kill(self) -> bool:
        """Kill all that is in it. Whether something is there still."""
        if not self._write(KILL, b"1"):
            return False
        try:
            with open(os.path.join(self.folder, EVENTS), "rb") as file:
                return b"populated 1" in file.read()
        except OSError:
            return False

    def remove(self) -> None:
        """Remove it, if it is empty."""
        try:
            os.rmdir(self.folder)
        except OSError:
            pass

    def _write(self, name: str, data: bytes) -> bool:
        if not self.folder:
            return False
        try:
            fd = os.open(os.path.join(self.folder, name), os.O_WRONLY)
        except OSError:
            return False
        try:
            os.write(fd, data)
            return True
        except OSError:  # delegated in part only: this process may not leave its own
            return False
        finally:
            os.close(fd)


def _own() -> str:
    """The folder of this process's own control group; empty where version 2 is not mounted whole."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            inside = next(line[3:].strip() for line in file if line.startswith("0::"))
        with open("/proc/self/mountinfo", encoding="utf-8") as file:
            mounts = [line.split() for line in file if " - cgroup2 " in line]
        return next(mount[4] + inside for mount in mounts if mount[3] == "/")
    except (OSError, StopIteration):
        return ""
