"""Brings what is new of a run from its hosts into the client's own folder, by byte offset, losing nothing.

Files that grow are asked for from the size of the copy on, and written at that offset: two clients that do so at once
write the same bytes to the same places. What the head says of the run is written down last, so that whoever reads here
that the run has ended finds everything else here too; but what ranks print, of which there may be gigabytes, is left
where it is as long as they print, and behind ``AT_ONCE`` until somebody asks for it (``RunFiles.logs_whole``).
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vpipe_cli.engines.hosts import HostFiles
from vpipe_cli.transport.base import Transport
from worker.errors import PreflightError, VpipeError
from worker.spec.files import RunFiles, read_events, write_atomic
from worker.spec.records import FINAL

AGAIN = 0.5  # seconds between two passes
FIRST_LOOK = 20.0  # seconds a command waits for what the hosts say, at first
NEXT_LOOK = 0.3  # and later on, while somebody watches
SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
EVENTS = "events.jsonl"
ALL_OF_IT = 2**62
SYNC_LIMIT = 30.0  # seconds for one answer
AT_ONCE = 32 << 20  # bytes of a host's logs that come unasked, once its ranks have ended

Connect = Callable[[Sequence[str]], tuple[dict[str, Transport], dict[str, VpipeError]]]
"""Transports of those of some hosts that answer, and why the others do not."""


class Mirror:
    """One run's copy. A pass over all hosts runs in a thread of its own, so that whoever watches never waits for it.

    Args:
        folders: the run's folder on each host, the head's first.
        ranks: the ranks of each host.
        shared: whether the folder, which only one host is asked for, is that of all machines of the run. Who lives on
            those it cannot tell: for it, they do until the run has ended.
    """

    def __init__(
        self,
        files: RunFiles,
        folders: dict[str, str],
        ranks: dict[str, list[int]],
        connect: Connect,
        shared: bool = False,
    ) -> None:
        self._files, self._folders, self._ranks, self._connect = files, folders, ranks, connect
        self._shared = shared
        self.head = next(iter(folders))
        self.errors: dict[str, VpipeError] = {}
        self.alive: dict[str, bool] = {}
        self._lives: dict[str, bool] = {}
        self._servers: dict[str, HostFiles] = {}
        self._transports: dict[str, Transport] = {}
        self._marks: dict[tuple[str, str], Any] = {}
        self._thread: threading.Thread | None = None
        self._passed = 0.0
        self.passes = 0
        self._all_logs = self._over = False
        self._whole: set[str] = set()

    @property
    def members(self) -> list[str]:
        """All hosts but the head's."""
        return [host for host in self._folders if host != self.head]

    def look(self, wait: float | None) -> None:
        """A pass as ``Engine.refresh`` asks for it: soon, not necessarily at once, while one watches."""
        default = NEXT_LOOK if self.passes else FIRST_LOOK
        self.refresh(default if wait is None else wait, at_once=wait is not None)

    def refresh(self, wait: float, at_once: bool = False, logs: bool = False) -> None:
        """Begin a pass, unless one runs or (not ``at_once``) has just ended; wait for its end at most ``wait`` s.

        Args:
            logs: bring all there is of the ranks' logs, however much that is.
        """
        until = time.monotonic() + wait
        if logs and not self._all_logs and self.busy:
            self._join(wait)
        if not self.busy and (at_once or logs or time.monotonic() - self._passed > AGAIN or not self.passes):
            self._all_logs = logs
            self._thread = threading.Thread(target=self._pass, daemon=True)
            self._thread.start()
        self._join(until - time.monotonic())

    @property
    def busy(self) -> bool:
        """Whether a pass is under way."""
        return self._thread is not None and self._thread.is_alive()

    def _join(self, seconds: float) -> None:
        if self._thread is not None:
            self._thread.join(max(0.0, min(seconds, threading.TIMEOUT_MAX)))

    def close(self) -> None:
        """End all connections."""
        for server in self._servers.values():
            server.close()
        for transport in self._transports.values():
            transport.close()
        self._servers.clear()
        self._transports.clear()

    def request_stop(self) -> None:
        """Leave the file ``stop`` on the head. Raises UnreachableError if that is not possible."""
        with HostFiles(self._transport(self.head)) as server:
            server.ask("write", files={f"{self._folders[self.head]}/stop": ""})

    def append(self, name: str, text: str) -> None:
        """Add a line to a file of the head. Raises UnreachableError."""
        with HostFiles(self._transport(self.head)) as server:
            server.ask("append", path=f"{self._folders[self.head]}/{name}", text=text)

    def connected(self) -> Transport | None:
        """The way to the head, if it answered when it was last spoken to."""
        return None if self.head in self.errors else self._transports.get(self.head)

    def _transport(self, host: str) -> Transport:
        if host not in self._transports:
            found, errors = self._connect([host])
            if host in errors:
                raise errors[host]
            self._transports.update(found)
        return self._transports[host]

    def _pass(self) -> None:
        """One look at every host. A head that has just ended is looked at twice: what it said of the run was asked for
        before it was asked whether it lives, so that its last words may have come in between."""
        try:
            self._look()
            if self._lives.get(self.head) is False and self.alive.get(self.head) is not False:
                self._look()
            self.alive.update(self._lives)
        except FileNotFoundError:
            if self._files.folder.is_dir():
                raise
            # The run was removed while it was being copied: there is nothing left to bring up to date.
        finally:
            self._passed = time.monotonic()
            self.passes += 1

    def _look(self) -> None:
        """First what the head says of the run, then all else, then writing the first down."""
        self._reach()
        events = self._attempt(self.head, self._events) or []
        self._over = self._over or _ends(self._files, b"".join(data for _, data in events))
        with ThreadPoolExecutor(max(1, len(self._servers))) as pool:
            list(pool.map(lambda host: self._attempt(host, self._copy), list(self._servers)))
        for offset, data in events:
            self._append(self._files.events, offset, data)
        if self._over and self._whole == set(self._folders) and not self._files.logs_whole.exists():
            write_atomic(self._files.logs_whole, "")

    def _reach(self) -> None:
        """Connect to hosts that have no server; those that cannot be reached are tried again in the next pass."""
        lost = [host for host in self._folders if host not in self._transports]
        if lost:
            found, errors = self._connect(lost)
            self._transports.update(found)
            self.errors.update(errors)
        for host in self._folders:
            if host in self._transports and host not in self._servers:
                self._attempt(host, lambda host: self._servers.update({host: HostFiles(self._transports[host])}))

    def _attempt(self, host: str, action: Callable[[str], Any]) -> Any:
        """Do something with a host; if it fails, the host counts as out of reach until a later pass."""
        if action in (self._events, self._copy) and host not in self._servers:
            return None
        try:
            done = action(host)
        except PreflightError as error:  # it answers, but what it says is that it cannot
            self.errors[host] = error
            return None
        except VpipeError as error:
            self._drop(host, error)
            return None
        if action == self._copy:
            self.errors.pop(host, None)
        return done

    def _drop(self, host: str, error: VpipeError) -> None:
        self.errors[host] = error
        for broken in (self._servers.pop(host, None), self._transports.pop(host, None)):
            if broken is not None:
                broken.close()

    def _events(self, host: str) -> list[tuple[int, bytes]]:
        """What is new of the head's events."""
        size, found, more = _size(self._files.events), [], True
        while more:
            answer, data = self._sync(host, have={EVENTS: size}, only=[EVENTS])
            for _, _, offset, length, _ in answer["files"]:
                found.append((offset, data[:length]))
                size = offset + length
            more = answer["more"]
        return found

    def _copy(self, host: str) -> None:
        """Everything else that is new on a host; what its ranks printed once they have ended, or if it is asked for."""
        alive, _ = self._bring(host, None, logs=False)
        alive = alive or (self._shared and not self._over)
        if self._all_logs or self._over or not alive:
            _, whole = self._bring(host, None if self._all_logs else AT_ONCE, logs=True)
            if whole and not alive and self._over:
                self._whole.add(host)
        self._lives[host] = alive

    def _bring(self, host: str, most: int | None, logs: bool) -> tuple[bool, bool]:
        """Take what is new until ``most`` bytes have come; whether the host's hostd lives, and whether that was all."""
        took = 0
        while True:
            answer, data = self._sync(host, have=self._have(host), logs=logs)
            took += len(data)
            for name, kind, offset, length, mark in answer["files"]:
                piece, data = data[:length], data[length:]
                self._take(host, name, kind, offset, piece, mark)
            if not answer["more"] or (most is not None and took >= most):
                return answer["alive"], not answer["more"]

    def _sync(self, host: str, **fields: Any) -> tuple[dict[str, Any], bytes]:
        place = {"folder": self._folders[host], "ranks": self._ranks[host], "host": host, "shared": self._shared}
        return self._servers[host].exchange("sync", SYNC_LIMIT, top=host == self.head, **place, **fields)

    def _have(self, host: str) -> dict[str, Any]:
        have: dict[str, Any] = {name: mark for (of, name), mark in self._marks.items() if of == host}
        root = self._files.folder
        grown = [path.name for pattern in ("*.log", "*.jsonl") for path in root.glob(pattern)]
        for rank in self._ranks[host]:
            for path in [*root.glob(f"attempt-*/rank-{rank}.*"), *root.glob(f"*/rank-{rank}.jsonl")]:
                if path.suffix in (".log", ".stacks", ".jsonl"):
                    grown.append(str(path.relative_to(root)))
        return {**have, **{name: _size(root / name) for name in grown}, EVENTS: ALL_OF_IT}

    def _take(self, host: str, name: str, kind: str, offset: int, data: bytes, mark: Any) -> None:
        """Write a piece of a file where it belongs; a host has no say in any other place."""
        if not SAFE.fullmatch(name):
            raise PreflightError(f"{host} offers a file named {name!r}")
        path = self._files.folder / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if kind in ("grows", "skips"):
            self._append(path, offset, data, hole=kind == "skips")
        else:
            write_atomic(path, data.decode(errors="replace"))
            self._marks[host, name] = mark

    def _append(self, path: Path, offset: int, data: bytes, hole: bool = False) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            if hole or os.fstat(descriptor).st_size >= offset:  # no hole but those that the host has
                os.pwrite(descriptor, data, offset)
        finally:
            os.close(descriptor)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _ends(files: RunFiles, new: bytes) -> bool:
    """Whether the events here, or what is new of them, say that the run has ended."""
    if any(event.get("event") == "state" and event.get("state") in FINAL for event in read_events(files.events)):
        return True
    return any(f'"state":"{state}"'.encode() in new for state in FINAL)
