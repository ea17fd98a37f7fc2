"""Machines that are folders of this one: the real programs run there, only the network is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vpipe_cli.transport.base import Channel, Finished
from vpipe_cli.transport.local import LocalTransport
from worker.errors import UnreachableError


class Place(LocalTransport):
    """A machine whose vpipe folder is ``root``. ``sent`` counts bytes; ``cut`` breaks a connection after that many."""

    def __init__(self, host: str, root: Path, cut: int | None = None) -> None:
        self.host, self.root, self.cut = host, root, cut
        self.sent = 0

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Finished:
        """Run there."""
        return super().run(self._there(argv), stdin=stdin, timeout=timeout)

    def open(self, argv: Sequence[str], *, timeout: float) -> Channel:
        """Start there."""
        return Wire(super().open(self._there(argv), timeout=timeout), self)

    def _there(self, argv: Sequence[str]) -> list[str]:
        return ["env", f"VPIPE_HOME={self.root}", *argv]


class Wire:
    """A channel that counts, and may break."""

    def __init__(self, inner: Channel, place: Place) -> None:
        self._inner, self._place = inner, place
        self._broken = False

    def read(self, timeout: float) -> bytes:
        """What comes."""
        if self._broken:
            raise UnreachableError(f"{self._place.host}: the cable was pulled")
        return self._inner.read(timeout)

    def write(self, data: bytes) -> None:
        """Send, or break."""
        if self._place.cut is not None and self._place.sent + len(data) > self._place.cut:
            self.close()
            self._broken = True
            raise UnreachableError(f"{self._place.host}: the cable was pulled")
        self._inner.write(data)
        self._place.sent += len(data)

    def close(self) -> None:
        """End it."""
        self._inner.close()
