"""What the kernel knows of processes: who is left behind, who is stopped; and how a child is tied to its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from typing import Callable, Iterator, List, Tuple

from .cgroup import ControlGroup

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LIBC = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Orphans of this process's descendants become its children, to be reaped and found."""
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with(parent: int, group: ControlGroup) -> Callable[[], None]:
    """For a child to call between fork and exec: it is killed when ``parent`` ends, however that ends.

    It also enters the group, in which its guard looks for whatever it starts.
    """

    def tie() -> None:
        group.enter()
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return tie


def fork_with_guard(run: str, host: str, seconds: float = 10.0) -> None:
    """Return in a child whose end, however it comes, ends all of the run on this machine: the parent sees to that.

    A rank in a container outlives the signal of ``die_with`` where Apptainer changes its credentials on the way.
    """
    ended, _alive = os.pipe()
    if os.fork() == 0:
        os.close(ended)
        return  # holding ``_alive``, which nobody inherits, as long as it lives
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
        if fd > 2 and fd != ended:  # the lock and the connection to the head end with the child, not with its guard
            _close(fd)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.read(ended, 1)
    deadline, group = time.monotonic() + seconds, ControlGroup(run, host)
    while (end_strays(run, host) or group.kill()) and time.monotonic() < deadline:
        time.sleep(0.05)
    group.remove()
    os._exit(0)


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:  # that of the listing itself
        pass


def find_strays(run: str, host: str = "", adopted: bool = False) -> List[int]:
    """Processes that carry the token of the run (and of this host of it).

    ``adopted``: and this process's children, whatever they carry; for hostd, to whom orphans of ranks come.
    """
    wanted = {f"VPIPE_RUN={run}".encode()} | ({f"VPIPE_HOST={host}".encode()} if host else set())
    me = os.getpid()
    strays = []
    for pid, environ in _with_environ():
        state, parent = stat_of(pid)
        if pid != me and state not in "ZX" and (wanted <= set(environ.split(b"\0")) or (adopted and parent == me)):
            strays.append(pid)
    return strays


def end_strays(run: str, host: str) -> bool:
    """Kill all that carry the token. Whether there were any."""
    strays = find_strays(run, host)
    for pid in strays:
        kill(pid)
    return bool(strays)


def kill(pid: int) -> str:
    """End one process. Returns why that was not possible, or nothing."""
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError) as error:
        return str(error)
    return ""


def stat_of(pid: int) -> Tuple[str, int]:
    """State letter and parent of a process; ``X`` for one that is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, parent = file.read().rpartition(b")")[2].split()[:2]
    except (OSError, ValueError):
        return "X", 0
    return state.decode(), int(parent)


def workers(run: str, rank: int) -> List[int]:
    """The Python processes of one rank, whatever started them: those that may be asked for their stacks."""
    wanted = {f"VPIPE_RUN={run}".encode(), f"VPIPE_RANK={rank}".encode()}
    found = []
    for pid, environ in _with_environ():
        if wanted <= set(environ.split(b"\0")) and _is_python(pid):
            found.append(pid)
    return found


def _with_environ() -> Iterator[Tuple[int, bytes]]:
    """Every process whose environment may be read."""
    for name in os.listdir("/proc"):
        try:
            if name.isdigit():
                with open(f"/proc/{name}/environ", "rb") as file:
                    yield int(name), file.read()
        except OSError:  # gone, or not ours to read
            continue


def _is_python(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return False
    return os.path.basename(words[0]).startswith(b"python") and words[1:3] == [b"-m", b"worker"]
