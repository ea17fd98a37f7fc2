"""A conversation with ``vpipe_cli.onhost.images`` on one machine: JSON lines both ways, and bytes to it."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from vpipe_cli.onhost.send import start
from vpipe_cli.transport.base import Transport
from worker.errors import UnreachableError

SILENCE = 120.0
"""Seconds without a line, while a machine reads what it has, or brings to its disk what came."""
CHUNK = 1 << 20


class Refusal(Exception):
    """The machine says that it cannot be done, and why. ``full``: its disk is."""

    def __init__(self, message: str, full: bool = False) -> None:
        super().__init__(message)
        self.full = full


class Talk:
    """The program, running."""

    def __init__(self, transport: Transport, request: dict[str, Any]) -> None:
        self.host = transport.host
        self._channel = start(transport, "images", request, timeout=30.0)
        self._heard = b""

    def close(self) -> None:
        """End the conversation, from any thread."""
        self._channel.close()

    def hear(self, patience: float = SILENCE) -> dict[str, Any]:
        """The next line.

        Raises:
            Refusal: it is the last one, and says why.
            UnreachableError: the connection broke; TimeoutError: there was none in ``patience`` seconds.
        """
        while b"\n" not in self._heard:
            try:
                data = self._channel.read(patience)
            except ValueError:  # closed by ``close`` in another thread
                data = b""
            if not data:
                raise UnreachableError(f"{self.host}: the connection broke, or its python3 was killed")
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Refusal(str(answer["error"]), bool(answer.get("full")))
        return answer

    def say(self, answer: dict[str, Any]) -> None:
        """Send a line."""
        self.send(json.dumps(answer).encode() + b"\n")

    def send(self, data: bytes) -> None:
        """Send bytes. A machine that has stopped listening said why; raises that, as ``hear`` does."""
        try:
            self._channel.write(data)
        except UnreachableError:
            with suppress(UnreachableError, TimeoutError):
                self.hear()
            raise


def prefix(path: Path, count: int) -> str:
    """The sha256 of the first ``count`` bytes of a file."""
    taken = hashlib.sha256()
    with path.open("rb") as file:
        while count > 0 and (piece := file.read(min(CHUNK, count))):
            taken.update(piece)
            count -= len(piece)
    return taken.hexdigest()
