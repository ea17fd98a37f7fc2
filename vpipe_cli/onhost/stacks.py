"""Where the ranks of a run on this machine are at this moment, function by function. Python 3.8, standard library only.

A rank writes its stacks to a file when it gets SIGUSR2, inside the signal handler: so even one that hangs, or holds
Python's lock, does. One that has not come so far as to install the handler would be killed by it, and gets none.
"""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any, Dict, Iterator, Tuple

PATIENCE = 3.0  # seconds for an answer
SETTLED = 0.1  # seconds in which an answer does not grow any more
STATES = {"T": "stopped by a signal", "t": "stopped by a debugger", "D": "inside the kernel, not to be interrupted"}


def main(request: Dict[str, Any]) -> None:
    """``run``, and ``ranks`` as [[rank, file of its stacks], ...]; answers an object for each rank found."""
    found = dict(processes(request["run"]))
    answers: Dict[int, Dict[str, Any]] = {}
    begun: Dict[int, Tuple[str, int]] = {}
    for rank, path in request["ranks"]:
        pid = found.get(rank)
        if pid is None:
            answers[rank] = {"pid": None, "state": "has no process here", "stack": ""}
            continue
        answers[rank] = {"pid": pid, "state": state(pid), "stack": ""}
        if hears(pid):
            begun[rank] = (path, size(path))
            os.kill(pid, signal.SIGUSR2)
        else:
            answers[rank]["state"] = "is still starting"
    for rank, stack in settled(begun):
        answers[rank]["stack"] = stack
    print(json.dumps([{"rank": rank, **answer} for rank, answer in answers.items()]))


def processes(run: str) -> Iterator[Tuple[int, int]]:
    """Rank and process id of every rank of the run: its Python, whatever container it is in."""
    token = ("VPIPE_RUN=" + run).encode()
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            if token in contents(pid, "environ").split(b"\0"):
                words = contents(pid, "cmdline").split(b"\0")
                if os.path.basename(words[0]).startswith(b"python") and words[1:3] == [b"-m", b"worker"]:
                    yield int(words[words.index(b"--rank") + 1]), pid
        except (OSError, ValueError):
            continue


def contents(pid: int, name: str) -> bytes:
    """A file of a process."""
    with open("/proc/%d/%s" % (pid, name), "rb") as file:
        return file.read()


def status(pid: int) -> Dict[str, str]:
    """What the kernel says of a process; empty if it is gone."""
    try:
        lines = contents(pid, "status").decode(errors="replace").splitlines()
    except OSError:
        return {}
    return {key: value for key, _, value in (line.partition(":\t") for line in lines)}


def hears(pid: int) -> bool:
    """Whether a handler for SIGUSR2 is installed."""
    return bool(int(status(pid).get("SigCgt", "0"), 16) >> (signal.SIGUSR2 - 1) & 1)


def state(pid: int) -> str:
    """What keeps a process from answering; empty for one that runs or sleeps."""
    return STATES.get(status(pid).get("State", "")[:1], "")


def size(path: str) -> int:
    """Bytes of a file; 0 if there is none."""
    return os.path.getsize(path) if os.path.exists(path) else 0


def settled(begun: Dict[int, Tuple[str, int]]) -> Iterator[Tuple[int, str]]:
    """What was added to each file, once it grows no more."""
    deadline = time.monotonic() + PATIENCE
    seen: Dict[int, Tuple[int, float]] = {rank: (at, time.monotonic()) for rank, (_, at) in begun.items()}
    waiting = set(begun)
    while waiting and time.monotonic() < deadline:
        time.sleep(0.02)
        for rank in list(waiting):
            path, before = begun[rank]
            now = size(path)
            if now != seen[rank][0]:
                seen[rank] = (now, time.monotonic())
            elif now > before and time.monotonic() - seen[rank][1] > SETTLED:
                waiting.discard(rank)
    for rank, (path, before) in begun.items():
        if size(path) > before:
            with open(path, "rb") as file:
                file.seek(before)
                yield rank, file.read(1 << 20).decode(errors="replace")
