"""The seam to one machine: run a command there, move bytes there and back. Every call has a deadline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Progress = Callable[[int], None]
"""Told the number of bytes that have gone over so far."""


@dataclass(frozen=True)
class Finished:
    """How a command ended. ``code`` is None where a signal ended it or the connection broke: then nothing is known."""

    code: int | None
    stdout: bytes
    stderr: bytes


class Channel(Protocol):
    """A command that runs on the machine, with its standard input and output open."""

    def read(self, timeout: float) -> bytes:
        """The next bytes of its output, as soon as there are any; empty at its end.

        Raises:
            TimeoutError: nothing came within ``timeout`` seconds.
            UnreachableError: the connection broke.
        """

    def write(self, data: bytes) -> None:
        """Send all of ``data`` to its input. Raises UnreachableError if the connection broke."""

    def close(self) -> None:
        """Close both directions. The command itself ends only if it heeds the end of its input."""


class Transport(Protocol):
    """One machine. Safe to use from several threads."""

    host: str
    """As cluster.yml names it."""

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Finished:
        """Run ``argv`` to its end, both of its outputs drained. No string of it meets a shell unquoted.

        Raises:
            UnreachableError: no connection, or it broke.
            TimeoutError: it ran longer than ``timeout`` seconds; it may run on.
        """

    def open(self, argv: Sequence[str], *, timeout: float) -> Channel:
        """Start ``argv`` and return; its errors are discarded. Raises as ``run`` does."""

    def put(
        self, source: Path | bytes, target: str, *, mode: int = 0o600, progress: Progress | None = None, timeout: float
    ) -> None:
        """Write a file on the machine: aside, then renamed into place; folders on the way are made with mode 0700.

        Args:
            timeout: seconds that may pass without any byte going over.
        Raises:
            TransferError: the machine could not take it (disk full, no permission); nothing is left at ``target``.
        """

    def close(self) -> None:
        """End the connection. Idempotent."""
