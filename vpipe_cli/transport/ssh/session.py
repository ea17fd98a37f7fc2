"""Commands and files over one connection, as ``exec`` requests."""

from __future__ import annotations

import contextlib
import posixpath
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import paramiko

from vpipe_cli.transport.base import Finished, Progress
from vpipe_cli.transport.pieces import CHUNK, pieces, size_of
from vpipe_cli.transport.shell import command_line
from vpipe_cli.transport.ssh.alive import BROKEN, broken
from vpipe_cli.transport.ssh.link import Link
from worker.errors import TransferError

ANSWER_LIMIT = 60.0  # seconds a command may leave its input unread
SLOWEST_DISK = 50e6  # bytes per second; a file that is sent has yet to be synced

PUT = """
set -e; umask 077; trap 'rm -f "$2"' 0; trap 'exit 1' HUP TERM
if [ -d "$1" ]; then echo "$1 is a folder" >&2; exit 1; fi
mkdir -p "$5"; cat >"$2"
if [ "$(wc -c <"$2")" -ne "$3" ]; then echo "not all of its $3 bytes came" >&2; exit 1; fi
chmod "$4" "$2"; sync "$2" 2>/dev/null || :; mv -f "$2" "$1"
"""
"""Arguments: target, file aside, size, mode, folder. Input cut short, as by a lost connection, leaves nothing."""


class SshTransport:
    """Commands as ``exec`` requests, files as the input of ``cat``."""

    def __init__(self, link: Link) -> None:
        self.host = link.target.host
        self._link = link

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Finished:
        """Run ``argv`` to its end. Raises UnreachableError, TimeoutError."""
        deadline = time.monotonic() + timeout
        channel = self._link.start(command_line(argv), timeout)
        try:
            channel.settimeout(timeout)
            threading.Thread(target=_feed, args=[channel, stdin], daemon=True).start()
            return self._finish(channel, deadline, f"{argv[0]} did not end within {timeout:g} s; it may run on")
        finally:
            self._link.end(channel)

    def open(self, argv: Sequence[str], *, timeout: float) -> SshChannel:
        """Start ``argv`` and return. Raises UnreachableError, TimeoutError."""
        return SshChannel(self._link, command_line(argv, quiet=True), timeout)

    def put(
        self, source: Path | bytes, target: str, *, mode: int = 0o600, progress: Progress | None = None, timeout: float
    ) -> None:
        """Write a file on the machine. Raises TransferError, UnreachableError, TimeoutError."""
        path = target if target.startswith("/") else f"./{target}"
        folder, name = posixpath.split(path)
        size = size_of(source)
        aside = f"{folder}/.{name[:200]}.{secrets.token_hex(4)}"
        argv = ["/bin/sh", "-c", PUT, "put", path, aside, str(size), f"{mode:o}", folder or "/"]
        channel = self._link.start(command_line(argv), timeout)
        try:
            channel.settimeout(timeout)
            if not _feed(channel, source, progress):
                stalled = TimeoutError(f"{self.host}: {target}: no byte went over for {timeout:g} s")
                raise self._link.lost() if broken(channel) else stalled
            patience = timeout + size / SLOWEST_DISK
            late = f"{target}: sent, but not on its disk within {patience:.0f} s"
            finished = self._finish(channel, time.monotonic() + patience, late)
        finally:
            self._link.end(channel)
        if finished.code != 0:
            words = finished.stderr.decode(errors="replace").strip() or f"it ended with code {finished.code}"
            raise TransferError(f"{self.host}: cannot write {target}: {words}")

    def close(self) -> None:
        """End the connection, but not those to jump hosts, which others may use."""
        self._link.close()

    def _finish(self, channel: paramiko.Channel, deadline: float, late: str) -> Finished:
        """Both outputs to their ends and the exit code; TimeoutError, which says ``late``, if the deadline is first."""
        output, errors = bytearray(), bytearray()
        reader = threading.Thread(target=_collect, args=[channel, channel.recv_stderr, errors, deadline], daemon=True)
        reader.start()
        whole = _collect(channel, channel.recv, output, deadline)
        reader.join(max(0.0, deadline - time.monotonic()))
        ended = channel.status_event.wait(max(0.0, deadline - time.monotonic()))
        code = channel.exit_status if channel.exit_status >= 0 else None
        # The code may come before the last of the output. Without an end to that, it may have been cut.
        if (code is None or not channel.eof_received) and broken(channel):
            raise self._link.lost()
        if not (whole and ended) or reader.is_alive():
            raise TimeoutError(f"{self.host}: {late}")
        return Finished(code, bytes(output), bytes(errors))


class SshChannel:
    """A command on the machine, its input and output open."""

    def __init__(self, link: Link, command: str, timeout: float) -> None:
        self._link, self._once = link, threading.Lock()
        self._channel = link.start(command, timeout)

    def read(self, timeout: float) -> bytes:
        """The next bytes of output; empty at its end. Raises TimeoutError, UnreachableError."""
        self._channel.settimeout(timeout)
        try:
            data = self._channel.recv(CHUNK)
        except TimeoutError:
            raise TimeoutError(f"{self._link.target.host}: nothing came within {timeout:g} s") from None
        if not data and not self._channel.eof_received and broken(self._channel):
            raise self._link.lost()
        return data

    def write(self, data: bytes) -> None:
        """Send all of ``data``. Raises UnreachableError."""
        view, deadline = memoryview(data), time.monotonic() + ANSWER_LIMIT
        packet = self._channel.out_max_packet_size - 64  # all that goes at once: more would be copied in vain
        while view:
            try:
                view = view[self._channel.send(bytes(view[:packet])) :]
            except TimeoutError:  # the reader's, who may be impatient
                if time.monotonic() > deadline or broken(self._channel):
                    raise self._link.lost(f"no input is taken for {ANSWER_LIMIT:g} s") from None
            except BROKEN as error:
                raise self._link.lost(error) from None

    def close(self) -> None:
        """Close both directions."""
        if self._once.acquire(blocking=False):
            self._link.end(self._channel)


def _feed(channel: paramiko.Channel, source: Path | bytes, progress: Progress | None = None) -> bool:
    """Send all of it, until the other side takes no more: a command need not read its input. False if it stalls."""
    size = size_of(source)
    for sent, piece in pieces(source, channel.out_max_packet_size - 64):
        try:
            channel.sendall(piece)
        except TimeoutError:
            return False
        except BROKEN:
            break  # its words and its code say why, or the connection broke
        if progress and (sent % CHUNK < len(piece) or sent == size):
            progress(sent)
    with contextlib.suppress(*BROKEN):
        channel.shutdown_write()
    return True


def _collect(channel: paramiko.Channel, receive: Callable[[int], bytes], into: bytearray, deadline: float) -> bool:
    """All bytes of one output, until its end; False if the deadline came first."""
    while True:
        channel.settimeout(max(0.0, deadline - time.monotonic()))
        try:
            data = receive(CHUNK)
        except TimeoutError:
            return False
        if not data:
            return True
        into += data
