"""What a launch on other hosts does there, step by step: find the place, send what is missing, start the hostds."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from vpipe_cli.container.code import ship_code
from vpipe_cli.container.ship import Progress, ship
from vpipe_cli.container.store import Image
from vpipe_cli.engines.hosts import HostFiles
from vpipe_cli.launch import Launch, slice_of
from vpipe_cli.shipped import code, user_code, user_folder
from vpipe_cli.transport.base import Transport
from worker.errors import PreflightError

START_LIMIT = 30.0  # seconds for a hostd to begin, its joining of the head included
PYTHON = ("python3", "-I", "-S")

T = TypeVar("T")


class Shipment:
    """A launch on its way to its hosts. The first host is the head's."""

    def __init__(self, launch: Launch, hosts: Mapping[str, Transport], servers: Mapping[str, HostFiles]) -> None:
        self._launch, self.hosts, self._servers = launch, hosts, servers
        self._head = launch.head
        self.places = self._each(lambda host: self._servers[host].ask("where"))

    @property
    def folders(self) -> dict[str, str]:
        """The run's folder on each host, the head's first."""
        return {host: f"{place['root']}/runs/{self._launch.run}" for host, place in self.places.items()}

    def send(self, events: str, image: Image | None, progress: Progress | None) -> None:
        """Image, code and files; nothing that is there already.

        Args:
            events: what the client has written of the run so far; the head goes on from there.
        Raises:
            ImageError, TransferError: a host could not take them.
            PreflightError, UnreachableError
        """
        if code().digest != self._launch.code or (image is not None and image.sha256 != self._launch.image):
            raise PreflightError("the code or the image changed since the launch was worked out", "launch again")
        if image is not None:
            ship(self.hosts, image.path, image.sha256, progress)
        ship_code(self.hosts, code())
        if folder := user_folder(self._launch.job.spec):
            ship_code(self.hosts, user_code(folder))
        self._each(lambda host: self._servers[host].ask("write", files=self._files(host, events)))

    def start(self) -> None:
        """Start the head, then all others at once; each has joined the head when this returns. Raises as ``send``."""
        secret = secrets.token_hex(32)
        members = [host for host in self.places if host != self._head]
        addresses = self._addresses()
        peers = {host: addresses[host] for host in members}
        said = self._hostd(self._head, {"secret": secret, "peers": peers})
        if members:
            words = {"secret": secret, "head": json.loads(said)["address"]}
            self._each(lambda host: self._hostd(host, words), members)

    def _files(self, host: str, events: str) -> dict[str, str]:
        folder = self.folders[host]
        launch = slice_of(self._launch, host, self.places[host]["root"])
        found = {
            f"{folder}/job.json": self._launch.job.model_dump_json(indent=2) + "\n",
            f"{folder}/launch-{host}.json": json.dumps(launch, indent=2) + "\n",
            f"{folder}/metrics/.{host}": "",  # for the folders
            f"{self.places[host]['root']}/cache/.{host}": "",
        }
        found |= {f"{folder}/tmp/rank-{rank['rank']}/.keep": "" for rank in launch["ranks"]}
        return {**found, f"{folder}/events.jsonl": events} if host == self._head else found

    def _hostd(self, host: str, words: dict[str, Any]) -> str:
        """Start a hostd; what it printed."""
        root = self.places[host]["root"]
        argv = [*PYTHON, f"{root}/code/{self._launch.code}/worker/hostd", f"{self.folders[host]}/launch-{host}.json"]
        done = self._servers[host].ask(
            "start", START_LIMIT + 5.0, argv=argv, input=json.dumps(words), limit=START_LIMIT
        )
        if done["code"] != 0:
            raise PreflightError(f"{host}: hostd could not be started: {done['err'].strip() or done['code']}")
        return str(done["out"])

    def _addresses(self) -> dict[str, str]:
        """An address of every host that the others can route to: the one it is reached by over SSH."""
        known = {host: place["address"] for host, place in self.places.items()}
        other = next((address for address in known.values() if address), "127.0.0.1")
        return {
            host: address or self._servers[host].ask("towards", peer=other)["address"]
            for host, address in known.items()
        }

    def _each(self, action: Callable[[str], T], hosts: list[str] | None = None) -> dict[str, T]:
        """``action`` for all hosts at once; raises the first host's error."""
        names = list(self._servers) if hosts is None else hosts
        with ThreadPoolExecutor(max(1, min(32, len(names)))) as pool:
            return dict(zip(names, pool.map(action, names), strict=True))
