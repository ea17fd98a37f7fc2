"""A run's files on its host, for the client: what is new of them, and the few things a client does there.

The client sends this source over an SSH channel and then speaks to ``main``: one JSON object a line in; out comes a
JSON object a line, followed by as many raw bytes as its ``size`` says. Nothing of it is installed, and it ends when its
input does. Python 3.8, standard library only, nothing of vpipe.

Requests, by ``op``:

where   -> ``root`` (where vpipe keeps everything), ``address`` (the one this connection came in by, or empty),
           ``home``, ``name``
towards ``peer`` -> ``address``, its own one that leads there
sync    ``folder, ranks, host, top, have, only, logs, shared`` -> ``files`` [name, kind, offset, size, mark], ``more``,
           ``alive``; their bytes follow in order. ``have`` is what the client has: the size of files that only grow,
           the ``mark`` of others. ``top`` asks for the files of the run itself, which the head keeps; ``only`` for
           these names alone; ``logs`` false leaves out those of the ranks; ``shared`` says that the folder is that of
           all machines of the run. A file of the kind ``skips`` grows, and has a hole between what the client has and
           ``offset``
write   ``files`` {path: text} -> writes each whole and durably, mode 0600; folders 0700
append  ``path, text`` -> adds a line durably
have    ``paths`` -> ``there``, those that exist
start   ``argv, input, limit`` (seconds) -> ``code, out, err`` of a command that ends by itself
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import uuid
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

PER_FILE = 1 << 20  # bytes of one file in one answer
PER_ANSWER = 8 << 20
GROWS = (".jsonl", ".log", ".stacks")
PRIVATE = ("job.json", "plan.json", "launch.json", "request.json", "slurm.json", "queue.json", "allocation.json")
"""Files of the run that the client itself has written; and the secret of an allocation, which stays where it is."""
PLACED = ("job.json", "launch.json", "slurm.log")
"""What a job of Slurm writes anew with the nodes of its allocation, and what its script says."""

Answer = Tuple[Dict[str, Any], bytes]


def main(_: Any) -> None:
    """Answer requests until there are no more."""
    os.umask(0o077)
    for line in iter(sys.stdin.readline, ""):
        try:
            request = json.loads(line)
            answer, data = OPERATIONS[request["op"]](request)
        except Exception as error:
            answer, data = {"error": f"{type(error).__name__}: {error}"}, b""
        sys.stdout.buffer.write(json.dumps({**answer, "size": len(data)}).encode() + b"\n" + data)
        sys.stdout.buffer.flush()


def where(request: Dict[str, Any]) -> Answer:
    """What a launch must know of this machine before it writes anything."""
    root = os.path.abspath(os.path.expanduser(os.environ.get("VPIPE_HOME") or "~/.vpipe"))
    by = os.environ.get("SSH_CONNECTION", "").split()
    home = os.path.expanduser("~")
    return {"root": root, "home": home, "address": by[2] if len(by) == 4 else "", "name": socket.gethostname()}, b""


def sync(request: Dict[str, Any]) -> Answer:
    """What the client has not got yet, at most ``PER_ANSWER`` bytes of it."""
    folder, have, only = request["folder"], request["have"], request.get("only")
    lock = os.path.join(folder, f"alive-{request['host']}.lock")
    alive = is_locked(lock)  # before reading: what was written before the end is then read
    files, pieces, left = [], [], PER_ANSWER
    more, logs = False, request.get("logs", True)
    for name in names(folder, request["ranks"], request["host"], request["top"], request.get("shared", False)):
        if (only is not None and name not in only) or (not logs and is_log(name)):
            continue
        had = have.get(name)
        found = news(os.path.join(folder, name), had, min(PER_FILE, left))
        if found is None:
            continue
        offset, data, mark, rest = found
        kind = "whole" if not name.endswith(GROWS) else "skips" if offset > (had or 0) else "grows"
        files.append([name, kind, offset, len(data), mark])
        pieces.append(data)
        left -= len(data)
        more = more or rest
        if left <= 0:
            more = True
            break
    return {"files": files, "more": more, "alive": alive}, b"".join(pieces)


def names(folder: str, ranks: List[int], host: str, top: bool, shared: bool = False) -> Iterator[str]:
    """The files that a client may have, relative to the run's folder."""
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        path = os.path.join(folder, name)
        if name in (f"hostd-{host}.log", f"end-{host}.json") or (
            top and name.endswith((".json", ".jsonl")) and _public(name)
        ):
            yield name
        elif shared and (name in PLACED or (name.startswith("hostd-") and name.endswith(".log"))):
            yield name
        elif os.path.isdir(path) and (name.startswith("attempt-") or name in ("metrics", "trace")):
            for rank in ranks:
                beginning = f"rank-{rank}."
                yield from (f"{name}/{file}" for file in sorted(os.listdir(path)) if file.startswith(beginning))


def is_log(name: str) -> bool:
    """Whether it is what a rank printed, of which there may be gigabytes."""
    return "/" in name and name.endswith(".log")


def _public(name: str) -> bool:
    return name not in PRIVATE and not name.startswith((".", "launch-", "end-"))


def news(path: str, had: Any, limit: int) -> Optional[Tuple[int, bytes, Any, bool]]:
    """Offset, bytes, mark and whether there is more of a file; None if the client has all of it, or nobody wants it."""
    if path.endswith(".progress"):
        return None
    try:
        with open(path, "rb") as file:
            state = os.fstat(file.fileno())
            if path.endswith(GROWS):
                offset = had if isinstance(had, int) else 0
                if state.st_size <= offset:
                    return None
                offset = data_from(file.fileno(), offset, state.st_size)
                file.seek(offset)
                data = file.read(limit)
                return offset, data, offset + len(data), state.st_size > offset + len(data)
            mark = f"{state.st_mtime_ns}-{state.st_size}"
            return None if mark == had else (0, file.read(), mark, False)
    except OSError:  # gone between two looks, or no plain file
        return None


def data_from(fd: int, offset: int, size: int) -> int:
    """``offset``, or the end of the hole that it is in: a log over its limit has one."""
    try:
        return min(size, os.lseek(fd, offset, os.SEEK_DATA))
    except OSError:
        return offset


def is_locked(path: str) -> bool:
    """Whether a process of the run holds its lock on this machine."""
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


def write(request: Dict[str, Any]) -> Answer:
    """Each file whole, durable and private."""
    for path, text in request["files"].items():
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        aside = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{uuid.uuid4().hex}")
        with open(aside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    return {}, b""


def append(request: Dict[str, Any]) -> Answer:
    """One line more, on a line of its own even after one that a killed writer left torn; as worker.spec.files does."""
    descriptor = os.open(request["path"], os.O_RDWR | os.O_APPEND)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        rest = (b"\n" if torn else b"") + request["text"].encode()
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {}, b""


def towards(request: Dict[str, Any]) -> Answer:
    """The IPv4 address of this machine from which packets to ``peer`` leave; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((request["peer"], 9))
        return {"address": sock.getsockname()[0]}, b""


def have(request: Dict[str, Any]) -> Answer:
    """Which of some paths exist."""
    return {"there": [path for path in request["paths"] if os.path.exists(path)]}, b""


def start(request: Dict[str, Any]) -> Answer:
    """Run a command that ends by itself; what it starts in the background stays."""
    ended = subprocess.run(
        request["argv"],
        input=request["input"].encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=request["limit"],
        start_new_session=True,
    )
    out, err = ended.stdout.decode(errors="replace"), ended.stderr.decode(errors="replace")
    return {"code": ended.returncode, "out": out, "err": err}, b""


OPERATIONS: Dict[str, Callable[[Dict[str, Any]], Answer]] = {
    "where": where,
    "sync": sync,
    "write": write,
    "append": append,
    "have": have,
    "towards": towards,
    "start": start,
}
