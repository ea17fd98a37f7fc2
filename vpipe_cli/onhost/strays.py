"""Processes of runs that nobody watches over any more. Python 3.8, standard library only.

Every rank, and all it starts, carries VPIPE_RUN. As long as a run lives on a machine, so does its hostd there, with
the run's folder on its command line; what carries the token of a run without hostd is an orphan.
"""

from __future__ import annotations

import json
import os
import pwd
import signal
import time
from typing import Any, Dict, List, Set

YOUNG = 10.0  # seconds a process may have, while its hostd ends with all that is its own


def main(request: Dict[str, Any]) -> None:
    """``kill``: whether to end them. Answers a list of all."""
    found = orphans(request.get("young", YOUNG))
    if request.get("kill"):
        for each in found:
            each["ended"] = kill(each)
    print(json.dumps(found))


def orphans(young: float) -> List[Dict[str, Any]]:
    """Every process that carries the token of a run which has no hostd here."""
    carriers: List[Dict[str, Any]] = []
    watched: Set[str] = set()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            words = contents(name, "cmdline").split(b"\0")
            watched |= {run_of(word) for word in words if is_hostd(words)}
            environ = dict(pair.partition(b"=")[::2] for pair in contents(name, "environ").split(b"\0"))
        except OSError:  # gone, or not ours to read
            continue
        if b"VPIPE_RUN" in environ and words[0]:
            carriers.append(described(name, words, environ))
    alone = [each for each in carriers if each["run"] not in watched]
    time.sleep(0 if not alone else min(1.0, young / 10))  # one whose hostd has just ended goes with it
    return [each for each in alone if still_there(each)]


def described(name: str, words: List[bytes], environ: Dict[bytes, bytes]) -> Dict[str, Any]:
    """A process, with what tells it from a later one of the same number."""
    owner = os.stat("/proc/" + name).st_uid
    try:
        user = pwd.getpwuid(owner).pw_name
    except KeyError:
        user = str(owner)
    rank = environ.get(b"VPIPE_RANK", b"")
    return {
        "pid": int(name),
        "begun": begun(name),
        "run": environ[b"VPIPE_RUN"].decode(errors="replace"),
        "rank": int(rank) if rank.isdigit() else None,
        "user": user,
        "command": b" ".join(words).decode(errors="replace").strip(),
    }


def is_hostd(words: List[bytes]) -> bool:
    """Whether that is the command line of a hostd: an interpreter and its program."""
    return any(os.path.basename(word) in (b"hostd", b"hostd.py") for word in words[1:5])


def run_of(word: bytes) -> str:
    """The run whose folder a path is in; empty for any other word."""
    parts = word.split(b"/")
    return parts[parts.index(b"runs") + 1].decode(errors="replace") if b"runs" in parts[:-1] else ""


def begun(name: str) -> str:
    """When a process began, in ticks since the machine did."""
    return contents(name, "stat").rpartition(b")")[2].split()[19].decode()


def still_there(process: Dict[str, Any]) -> bool:
    """Whether it is that process, and no later one of its number."""
    try:
        return begun(str(process["pid"])) == str(process["begun"])
    except (OSError, IndexError):
        return False


def kill(process: Dict[str, Any]) -> bool:
    """End it; whether that worked."""
    try:
        if still_there(process):
            os.kill(process["pid"], signal.SIGKILL)
    except OSError:
        return False
    deadline = time.monotonic() + 2.0
    while still_there(process) and time.monotonic() < deadline and not is_zombie(process["pid"]):
        time.sleep(0.02)
    return not still_there(process) or is_zombie(process["pid"])


def is_zombie(pid: int) -> bool:
    """Whether a process has ended, and only its parent does not want to know."""
    try:
        return contents(str(pid), "stat").rpartition(b")")[2].split()[0] == b"Z"
    except OSError:
        return True


def contents(name: str, what: str) -> bytes:
    """A file of a process."""
    with open("/proc/%s/%s" % (name, what), "rb") as file:
        return file.read()
