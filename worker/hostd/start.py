"""The command: lock the run, leave the terminal, and become the head or a member."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from typing import Any, Callable, Dict, Sequence

from .head import Head
from .link import LinkLost
from .member import Member
from .processes import adopt_orphans, fork_with_guard
from .words import Refused

NEEDED = {"run", "attempt", "attempt_folder", "grace", "lock", "stop", "events", "hostd_log", "ranks"}


def take_lock(path: str) -> int:
    """Lock the run for this process and the ranks that inherit the descriptor. Raises Refused while another has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(10):  # whoever only asks whether the run is alive has the lock for a moment
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            time.sleep(0.1)
    raise Refused("the run is already running: a process of it still holds its lock")


def read_launch(path: str) -> Dict[str, Any]:
    """The launch to carry out. Raises Refused if the file is missing or is none."""
    try:
        with open(path, encoding="utf-8") as file:
            launch = json.load(file)
    except (OSError, ValueError) as error:
        raise Refused(f"cannot be read ({error})") from None
    if not isinstance(launch, dict) or not NEEDED <= set(launch):
        raise Refused(f"is no launch: it needs the keys {', '.join(sorted(NEEDED))}")
    return launch


def read_words(launch: Dict[str, Any]) -> Dict[str, Any]:
    """What only a run on several machines needs, from standard input, so that no list of processes shows it.

    ``secret``; for the head ``peers`` (an address of every other machine), for a member ``head`` (``host:port``).
    """
    if not launch.get("head"):
        return {"secret": os.urandom(16).hex(), "peers": {}}
    try:
        words = json.load(sys.stdin)
        needed = {"secret", "peers"} if launch["head"] == launch["host"] else {"secret", "head"}
        if needed <= set(words):
            return dict(words)
    except (ValueError, TypeError):
        pass
    raise Refused("needs the run's secret and addresses on standard input")


def claim(launch: Dict[str, Any], attempt: int) -> None:
    """Make the folder of an attempt, which only the first to start it can. Raises FileExistsError, OSError."""
    folder = os.path.join(os.path.dirname(launch["attempt_folder"]), f"attempt-{attempt}")
    if launch.get("claim"):  # a folder that machines may share
        os.makedirs(folder, 0o700, exist_ok=True)
        folder = os.path.join(folder, launch["claim"])
    os.mkdir(folder, 0o700)


def begin(launch: Dict[str, Any]) -> int:
    """Lock the run on this machine and claim its first attempt. Returns the lock's descriptor. Raises Refused."""
    lock = take_lock(launch["lock"])
    if os.path.exists(launch["stop"]):
        raise Refused("a stop was asked for before the run began")
    try:
        claim(launch, launch["attempt"])
    except FileExistsError:
        raise Refused(f"attempt {launch['attempt']} of the run was started before") from None
    return lock


def detach(log: str) -> None:
    """Leave the session and the terminal: standard input is empty, all output goes to ``log``."""
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for target, source in ((0, nothing), (1, output), (2, output)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(output)


def main(argv: Sequence[str]) -> int:
    """Start the supervisor of the launch named on the command line, and wait until it has begun.

    Prints, of a head with members, ``{"address": "host:port"}``, where these must call.
    """
    if len(argv) != 2:
        print("usage: python3 hostd LAUNCH_JSON", file=sys.stderr)
        return 2
    os.umask(0o077)
    try:
        launch = read_launch(argv[1])
        words = read_words(launch)
        supervisor = _supervisor(launch, words, begin(launch))
    except (OSError, Refused, LinkLost, LookupError) as error:
        print(f"hostd: {argv[1]}: {error}", file=sys.stderr)
        return 1
    return _detached(launch, supervisor)


def _supervisor(launch: Dict[str, Any], words: Dict[str, Any], lock: int) -> Callable[[Callable[[str], None]], None]:
    """What runs the launch; a member has joined its head already, so that what fails is told at once."""
    if "head" in words:
        member = Member(launch, lock, words["secret"], words["head"], claim)
        member.join()
        return member.run
    return lambda on_start: Head(launch, lock, words["secret"], words["peers"], claim).run(on_start)


def _detached(launch: Dict[str, Any], supervisor: Callable[[Callable[[str], None]], None]) -> int:
    heard, tell = os.pipe()
    if os.fork():
        os.close(tell)
        said = os.read(heard, 4096).decode()
        if not said:
            print(f"hostd: ended before it began, see {launch['hostd_log']}", file=sys.stderr)
            return 1
        if said.strip():
            print(json.dumps({"address": said.strip()}))
        return 0
    os.close(heard)
    detach(launch["hostd_log"])
    fork_with_guard(launch["run"], launch.get("host", "localhost"))
    adopt_orphans()

    def on_start(address: str) -> None:
        os.write(tell, (address + "\n").encode())
        os.close(tell)

    supervisor(on_start)
    return 0
