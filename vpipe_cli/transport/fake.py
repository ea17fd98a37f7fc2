"""A machine that is not there, for tests of what talks to machines: answers as told, remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vpipe_cli.transport.base import Finished, Progress
from worker.errors import TransferError, UnreachableError

Answer = Callable[[Sequence[str], bytes], Finished]


def _silent(argv: Sequence[str], stdin: bytes) -> Finished:
    return Finished(0, b"", b"")


@dataclass
class FakeTransport:
    """Answers every command with ``answer(argv, stdin)``; keeps files in ``files`` (bytes and mode by path).

    ``cut`` makes it unreachable; ``full`` makes it refuse files.
    """

    host: str
    answer: Answer = _silent
    calls: list[tuple[list[str], bytes]] = field(default_factory=list)
    files: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    cut: bool = False
    full: bool = False
    closed: bool = False

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Finished:
        """The answer. Raises UnreachableError once cut."""
        self._reach()
        self.calls.append((list(argv), stdin))
        return self.answer(argv, stdin)

    def open(self, argv: Sequence[str], *, timeout: float) -> FakeChannel:
        """A channel from which the answer's output can be read, and then its end."""
        return FakeChannel(self, self.run(argv, timeout=timeout).stdout)

    def put(
        self, source: Path | bytes, target: str, *, mode: int = 0o600, progress: Progress | None = None, timeout: float
    ) -> None:
        """Keep the file. Raises TransferError where it is full, UnreachableError once cut."""
        self._reach()
        if self.full:
            raise TransferError(f"{self.host}: cannot write {target}: No space left on device")
        data = source if isinstance(source, bytes) else source.read_bytes()
        self.files[target] = (data, mode)
        if progress:
            progress(len(data))

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True

    def _reach(self) -> None:
        if self.cut:
            raise UnreachableError(f"{self.host} does not answer")


@dataclass
class FakeChannel:
    """Gives ``output`` at once; keeps what is written in ``written``."""

    machine: FakeTransport
    output: bytes
    written: bytes = b""
    closed: bool = False

    def read(self, timeout: float) -> bytes:
        """All that is left of the output. Raises UnreachableError once the machine is cut."""
        self.machine._reach()
        data, self.output = self.output, b""
        return data

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.machine._reach()
        self.written += data

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True
