"""This machine, through the same seam as any other."""

from __future__ import annotations

import os
import secrets
import select
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vpipe_cli.transport.base import Channel, Finished, Progress
from vpipe_cli.transport.pieces import CHUNK, pieces
from worker.errors import TransferError, UnreachableError


class LocalTransport:
    """Commands as children of this process, files by plain writing."""

    host = "localhost"

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Finished:
        """Run ``argv`` to its end; raises TimeoutError, and ends all it started, after ``timeout`` seconds."""
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        try:
            process = subprocess.Popen(argv, start_new_session=True, **pipes)
        except OSError as error:
            return Finished(127, b"", str(error).encode())
        with process:
            try:
                output, errors = process.communicate(stdin, timeout)
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)  # not reaped yet, so the group is still its own
                if isinstance(error, subprocess.TimeoutExpired):
                    raise TimeoutError(f"{self.host}: {argv[0]} did not end within {timeout:g} s") from None
                raise
        return Finished(process.returncode if process.returncode >= 0 else None, output, errors)

    def open(self, argv: Sequence[str], *, timeout: float) -> Channel:
        """Start ``argv``."""
        return LocalChannel(argv)

    def put(
        self, source: Path | bytes, target: str, *, mode: int = 0o600, progress: Progress | None = None, timeout: float
    ) -> None:
        """Write a file aside, then rename it into place."""
        path = Path(target)
        aside = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}")
        try:
            _make_folder(path.parent)
            with open(aside, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                for sent, chunk in pieces(source):
                    file.write(chunk)
                    if progress:
                        progress(sent)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            aside.replace(path)
        except OSError as error:
            raise TransferError(f"{self.host}: cannot write {target}: {error.strerror or error}") from None
        finally:
            with suppress(OSError):
                aside.unlink()

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


def _make_folder(path: Path) -> None:
    """Make a folder and those it is in, each with mode 0700."""
    if not path.exists():
        _make_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
