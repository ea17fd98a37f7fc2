"""This machine, through the same seam as any other."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from vpipe_cli.transport.base import Channel, Finished, Progress
from worker.errors import TransferError, UnreachableError

CHUNK = 1 << 20


class LocalTransport:
    """Commands as children of this process, files by plain writing."""

    host = "localhost"

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Finished:
        """Run ``argv`` to its end; raises TimeoutError, and ends it, after ``timeout`` seconds."""
        try:
            done = subprocess.run(argv, input=stdin, capture_output=True, timeout=timeout, start_new_session=True)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{argv[0]} ran longer than {timeout:g} s") from None
        except OSError as error:
            return Finished(127, b"", str(error).encode())
        return Finished(done.returncode if done.returncode >= 0 else None, done.stdout, done.stderr)

    def open(self, argv: Sequence[str], *, timeout: float) -> Channel:
        """Start ``argv``."""
        return LocalChannel(argv)

    def put(
        self, source: Path | bytes, target: str, *, mode: int = 0o600, progress: Progress | None = None, timeout: float
    ) -> None:
        """Write a file aside, then rename it into place."""
        path = Path(target)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with aside.open("wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                for sent, chunk in _chunks(source):
                    file.write(chunk)
                    if progress:
                        progress(sent)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise TransferError(f"cannot write {target}: {error}") from None

    def close(self) -> None:
        """Nothing is kept open."""


class LocalChannel:
    """A child process with both ends of its pipes."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            argv,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def read(self, timeout: float) -> bytes:
        """The next bytes of output; raises TimeoutError if none come in ``timeout`` seconds."""
        assert self._process.stdout
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            raise TimeoutError(f"nothing came within {timeout:g} s")
        return os.read(self._process.stdout.fileno(), CHUNK)

    def write(self, data: bytes) -> None:
        """Send all of ``data``."""
        assert self._process.stdin
        view = memoryview(data)
        try:
            while view:
                view = view[self._process.stdin.write(view) or 0 :]
        except OSError as error:
            raise UnreachableError(f"localhost: {self._process.args!r} does not listen: {error}") from None

    def close(self) -> None:
        """Close the pipes and reap the process if it ends by that."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _chunks(source: Path | bytes) -> Iterator[tuple[int, bytes]]:
    """Pairs of the bytes so far, this chunk included, and the chunk."""
    if isinstance(source, bytes):
        yield len(source), source
        return
    sent = 0
    with source.open("rb") as file:
        while chunk := file.read(CHUNK):
            sent += len(chunk)
            yield sent, chunk
