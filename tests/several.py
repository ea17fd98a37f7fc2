"""Several hosts on this machine without SSH: each a folder of its own, reached as this machine is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vpipe_cli.transport.base import Channel, Finished, Transport
from vpipe_cli.transport.local import LocalTransport
from worker.errors import UnreachableError, VpipeError


class Elsewhere(LocalTransport):
    """This machine under another name, with its own ``$VPIPE_HOME``."""

    def __init__(self, host: str, root: Path) -> None:
        self.host, self._root = host, root

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Finished:
        """Run ``argv`` with the host's home."""
        return super().run(["env", f"VPIPE_HOME={self._root}", *argv], stdin=stdin, timeout=timeout)

    def open(self, argv: Sequence[str], *, timeout: float) -> Channel:
        """Start ``argv`` with the host's home."""
        return super().open(["env", f"VPIPE_HOME={self._root}", *argv], timeout=timeout)


class Several:
    """Hosts by name; ``down`` holds those that do not answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.down: set[str] = set()

    def root(self, host: str) -> Path:
        """Where the host keeps everything."""
        return self.folder / host

    def connect(self, hosts: Sequence[str]) -> tuple[dict[str, Transport], dict[str, VpipeError]]:
        """As the engine wants it."""
        errors: dict[str, VpipeError] = {
            host: UnreachableError(f"{host} does not answer") for host in hosts if host in self.down
        }
        return {host: Elsewhere(host, self.root(host)) for host in hosts if host not in errors}, errors
