"""One image to many machines: nothing where it is, the rest where it was cut off, once from here and then among them.

Every machine is asked what it has. If none has the image, one gets it from here. Whoever has it, or is just getting it,
gives it to another one over their own network, so that they stand in a chain and none waits until the one before has
all of it; who cannot be reached there gets it from here. The digest is checked by every
machine as the bytes arrive, and only then the image gets its name (see ``vpipe_cli.onhost.images``).
"""

from __future__ import annotations

import os
import queue
import secrets
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Semaphore
from typing import Any, Literal

from vpipe_cli.container.code import ROOM, gather
from vpipe_cli.container.store import share
from vpipe_cli.container.talk import Refusal, Talk, prefix
from vpipe_cli.onhost.send import ask
from vpipe_cli.transport.base import Transport
from worker.errors import ImageError, TransferError, UnreachableError

HERE = "localhost"
CHUNK = 1 << 20
MOST_THREADS = 64
UPLOADS = 4
"""Machines that get it from here at the same time."""
SLOWEST = 50e6
"""Bytes per second at which a machine at least reads its own disk."""

What = Literal["present", "waiting", "uploading", "fetching", "done", "failed"]


@dataclass(frozen=True)
class Step:
    """How far one host is: bytes it has, of all of them; ``via`` names the machine that gives them."""

    host: str
    what: What
    done: int
    total: int
    via: str = ""


Progress = Callable[[Step], None]


def ship(
    hosts: Mapping[str, Transport], sif: Path, sha256: str, progress: Progress | None = None, *, repair: bool = False
) -> dict[str, str]:
    """Bring an image to every host; its path on each.

    Args:
        progress: called from several threads.
        repair: replace an image that is damaged on a host; else it is refused.
    Raises:
        ImageError: the image is damaged on a host.
        TransferError: a host could not take it. All that could not are named.
        UnreachableError: a host did not answer any more.
    """
    return Shipment(hosts, sif, sha256, progress or (lambda _: None)).run(repair)


class Shipment:
    """One image on its way."""

    def __init__(self, hosts: Mapping[str, Transport], sif: Path, sha256: str, progress: Progress) -> None:
        self.hosts = {host: transport for host, transport in hosts.items() if host != HERE}
        self.here = [host for host in hosts if host == HERE]
        self.sif, self.sha256, self.size = sif, sha256, sif.stat().st_size
        self.progress = progress
        self.found: dict[str, dict[str, Any]] = {}
        self.givers: queue.Queue[str | None] = queue.Queue()
        self.offered: set[str] = set()
        self.uploads = Semaphore(UPLOADS)
        self.talks: set[Talk] = set()
        self.looked: dict[str, Talk] = {}
        """Conversations that can go on, which is sooner than to begin another one."""
        self.stopped = False

    def run(self, repair: bool) -> dict[str, str]:
        """Look everywhere, then bring it where it lacks."""
        try:
            self.found = self._look(repair)
            self._refuse()
            return self._bring_all()
        finally:
            for host in list(self.looked):
                self.looked.pop(host).close()

    def _bring_all(self) -> dict[str, str]:
        paths = {host: str(self.found[host]["path"]) for host in self.hosts}
        missing = [host for host in self.hosts if not self.found[host]["here"]]
        for host in self.hosts:
            if host not in missing:
                self._tell(host, "present", self.size)
                self._offer(host)
        self._spread(missing, nobody_has_it=len(missing) == len(self.hosts))
        return {**{host: share(self.sif, self.sha256, _root()) for host in self.here}, **paths}

    def _spread(self, missing: list[str], nobody_has_it: bool) -> None:
        if nobody_has_it:  # the first of them gets it from here
            missing = sorted(missing, key=lambda host: -int(self.found[host]["begun"]))
        with ThreadPoolExecutor(max(1, min(MOST_THREADS, len(missing)))) as pool:
            begins = dict.fromkeys(missing[:1], self._begin) if nobody_has_it else {}
            done = {host: pool.submit(begins.get(host, self._bring), host) for host in missing}
            try:
                wait(done.values())
            except BaseException:  # Ctrl-C: what goes on is ended, not waited for
                self._stop(len(missing))
                raise
        gather({host: future.exception() or future.result() for host, future in done.items()})

    def _stop(self, waiting: int) -> None:
        self.stopped = True
        for _ in range(waiting):
            self.givers.put(None)
        for talk in list(self.talks):
            talk.close()

    @contextmanager
    def _talk(self, host: str, request: dict[str, Any]) -> Iterator[Talk]:
        """A conversation about this image that ``_stop`` ends too."""
        if self.stopped:
            raise UnreachableError(f"{host}: shipping was ended")
        whole = {"sha256": self.sha256, "size": self.size, **request}
        looked = self.looked.pop(host, None)
        talk = looked or Talk(self.hosts[host], whole)
        self.talks.add(talk)
        try:
            if looked:
                looked.say(whole)
            yield talk
        finally:
            self.talks.discard(talk)
            talk.close()

    def _look(self, repair: bool) -> dict[str, dict[str, Any]]:
        request = {"do": "look", "sha256": self.sha256, "size": self.size, "repair": repair}
        limit = 60 + 2 * self.size / SLOWEST

        def one(host: str) -> dict[str, Any]:
            self.looked[host] = Talk(self.hosts[host], request)
            try:
                return self.looked[host].hear(limit)
            except Refusal as refusal:
                raise TransferError(f"{host}: {refusal}", ROOM) from None
            except UnreachableError:
                ask(self.hosts[host], "images", request, timeout=limit)  # which knows if it is for lack of a python3
                raise
            except TimeoutError as error:
                raise UnreachableError(f"{host}: {error}") from None

        with ThreadPoolExecutor(max(1, min(MOST_THREADS, len(self.hosts)))) as pool:
            asked = {host: pool.submit(one, host) for host in self.hosts}
        gather({host: future.exception() or "" for host, future in asked.items()})
        return {host: future.result() for host, future in asked.items()}

    def _refuse(self) -> None:
        """Stop before anything is sent where it cannot end well."""
        damaged = [
            f"{host}: the image {found['damaged']}" for host, found in self.found.items() if found.get("damaged")
        ]
        if damaged:
            raise ImageError("\n".join(damaged), "`vpipe image ship --repair` replaces it")
        full = [
            f"{host}: the disk of {found['root']} has {found['free'] >> 20} MB, the image needs {self.size >> 20}"
            for host, found in self.found.items()
            if not found["here"] and found["free"] < self.size - found["begun"]
        ]
        if full:
            raise TransferError("\n".join(full), ROOM)

    def _bring(self, host: str) -> str:
        """From another machine if that can be, else from here."""
        giver = self.givers.get()
        if giver is None:
            return self._begin(host)
        try:
            is_here = self._fetch(host, giver)
        finally:
            self.givers.put(giver)
        if not is_here:
            self._upload(host)
        return host

    def _begin(self, host: str) -> str:
        """From here; where that fails, the next one that waits for a giver does the same."""
        try:
            self._upload(host)
        except BaseException:
            self.givers.put(None)
            raise
        return host

    def _offer(self, host: str) -> None:
        """Let another machine have it from this one, which has it or is getting it."""
        if host not in self.offered:
            self.offered.add(host)
            self.givers.put(host)

    def _fetch(self, host: str, giver: str) -> bool:
        """Whether the machine got it from another one. What went wrong there is no error: there is another way."""
        token = secrets.token_hex(32)
        peers = self.found[host]["addresses"]
        try:
            with self._talk(giver, {"do": "serve", "peers": peers, "token": token}) as serving:
                endpoints = serving.hear()["endpoints"]
                with self._talk(host, {"do": "fetch", "endpoints": endpoints, "token": token}) as fetching:
                    self._follow(fetching, host, giver)
        except (Refusal, UnreachableError, TimeoutError, KeyError):
            return False
        return True

    def _follow(self, fetching: Talk, host: str, giver: str) -> None:
        while True:
            answer = fetching.hear()
            if "waiting" not in answer:
                self._offer(host)
            if "done" in answer:
                self._tell(host, "present" if answer.get("here") else "done", self.size, giver)
                return
            self._tell(host, *_stage(answer, "fetching"), via=giver)

    def _upload(self, host: str) -> None:
        with self.uploads, self._talk(host, {"do": "receive"}) as talk:
            try:
                answer = talk.hear()
                while "waiting" in answer:
                    self._tell(host, "waiting", answer["waiting"])
                    answer = talk.hear()
                self._offer(host)
                if "done" not in answer:
                    self._send(talk, host, answer)
                    answer = talk.hear()
                self._tell(host, "present" if answer.get("here") else "done", self.size, HERE)
            except Refusal as refusal:
                self._tell(host, "failed", 0)
                raise TransferError(f"{host}: {refusal}", ROOM if refusal.full else "") from None
            except TimeoutError as error:
                self._tell(host, "failed", 0)
                raise UnreachableError(f"{host}: {error}", "start it again; it goes on where it was cut off") from None

    def _send(self, talk: Talk, host: str, answer: dict[str, Any]) -> None:
        """Send what the machine lacks; all of it if the beginning it has is another one."""
        have = int(answer["have"])
        at = have if have <= self.size and prefix(self.sif, have) == answer["prefix"] else 0
        talk.say({"from": at})
        with self.sif.open("rb") as file:
            file.seek(at)
            while piece := file.read(CHUNK):
                talk.send(piece)
                at += len(piece)
                self._tell(host, "uploading", at, HERE)

    def _tell(self, host: str, what: What, done: int, via: str = "") -> None:
        self.progress(Step(host, what, done, self.size, via))


def _root() -> str:
    """Where vpipe keeps what it would keep on this machine if that were another one."""
    return os.path.abspath(os.path.expanduser(os.environ.get("VPIPE_HOME") or "~/.vpipe"))


def _stage(answer: dict[str, Any], moving: What) -> tuple[What, int]:
    return ("waiting", int(answer["waiting"])) if "waiting" in answer else (moving, int(answer.get("got", 0)))
