"""Commands and files over one connection, as ``exec`` requests."""

from __future__ import annotations

import base64
import contextlib
import os
import posixpath
import re
import secrets
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import paramiko

from vpipe_cli.transport.base import Finished, Progress
from vpipe_cli.transport.ssh.alive import BROKEN, broken
from vpipe_cli.transport.ssh.link import Link
from worker.errors import TransferError, UsageError

ANSWER_LIMIT = 60.0  # seconds a command may leave its input unread
MOST_ARGV = 96_000  # bytes of a command line; Linux takes 128 KiB in one piece, and these grow by a third
SLOWEST_DISK = 50e6  # bytes per second; a file that is sent has yet to be synced
CHUNK = 1 << 20

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
        with self._link.session(command_line(argv), timeout) as channel:
            channel.settimeout(max(0.0, deadline - time.monotonic()))
            feeder = threading.Thread(target=_feed, args=[channel, stdin], daemon=True)
            feeder.start()
            finished = self._finish(channel, deadline)
        if finished is None:
            raise TimeoutError(f"{self.host}: {argv[0]} did not end within {timeout:g} s; it may run on")
        return finished

    def open(self, argv: Sequence[str], *, timeout: float) -> SshChannel:
        """Start ``argv`` and return. Raises UnreachableError, TimeoutError."""
        return SshChannel(self._link, self._link.start(command_line(argv, quiet=True), timeout))

    def put(
        self, source: Path | bytes, target: str, *, mode: int = 0o600, progress: Progress | None = None, timeout: float
    ) -> None:
        """Write a file on the machine. Raises TransferError, UnreachableError, TimeoutError."""
        path = target if target.startswith("/") else f"./{target}"
        folder, name = posixpath.split(path)
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        aside = f"{folder}/.{name[:200]}.{secrets.token_hex(4)}"
        argv = ["/bin/sh", "-c", PUT, "put", path, aside, str(size), f"{mode:o}", folder or "/"]
        with self._link.session(command_line(argv), timeout) as channel:
            channel.settimeout(timeout)
            try:
                for sent, piece in _pieces(source, channel.out_max_packet_size - 64):
                    if not _send(channel, piece):
                        break  # its words and its code say why, or the connection broke
                    if progress and (sent % CHUNK < len(piece) or sent == size):
                        progress(sent)
                with contextlib.suppress(*BROKEN):
                    channel.shutdown_write()
            except TimeoutError:
                self._stalled(channel, f"{self.host}: {target}: no byte went over for {timeout:g} s")
            patience = timeout + size / SLOWEST_DISK
            finished = self._finish(channel, time.monotonic() + patience)
        if finished is None:
            self._stalled(channel, f"{self.host}: {target}: sent, but not on its disk within {patience:.0f} s")
        if finished.code != 0:
            words = finished.stderr.decode(errors="replace").strip() or f"it ended with code {finished.code}"
            raise TransferError(f"{self.host}: cannot write {target}: {words}")

    def close(self) -> None:
        """End the connection, but not those to jump hosts, which others may use."""
        self._link.close()

    def _stalled(self, channel: paramiko.Channel, message: str) -> NoReturn:
        if broken(channel):
            raise self._link.lost()
        raise TimeoutError(message)

    def _finish(self, channel: paramiko.Channel, deadline: float) -> Finished | None:
        """Both outputs to their ends and the exit code; None if the deadline comes first."""
        errors: list[bytes] = []
        reader = threading.Thread(target=_collect, args=[channel, channel.recv_stderr, errors, deadline], daemon=True)
        reader.start()
        output: list[bytes] = []
        whole = _collect(channel, channel.recv, output, deadline)
        reader.join(max(0.0, deadline - time.monotonic()))
        ended = channel.status_event.wait(max(0.0, deadline - time.monotonic()))
        code = channel.exit_status if channel.exit_status >= 0 else None
        # The code may come before the last of the output. Without an end to that, it may have been cut.
        if (code is None or not channel.eof_received) and broken(channel):
            raise self._link.lost()
        if not (whole and ended) or reader.is_alive():
            return None
        return Finished(code, b"".join(output), b"".join(errors))


class SshChannel:
    """A command on the machine, its input and output open."""

    def __init__(self, link: Link, channel: paramiko.Channel) -> None:
        self._link, self._channel = link, channel
        self._once = threading.Lock()

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


def command_line(argv: Sequence[str], quiet: bool = False) -> str:
    """One line that runs ``argv`` whatever the login shell is: nothing in it means anything to sh, csh, fish or zsh.

    Args:
        quiet: discard its errors.
    Raises:
        UsageError: it is too long for a command line, or holds a NUL.
    """
    text = shlex.join(argv)
    if len(os.fsencode(text)) > MOST_ARGV or "\0" in text:
        raise UsageError(f"the command {argv[0]} has a NUL or more than {MOST_ARGV} bytes; send them to its input")
    if not quiet and re.fullmatch(r"[A-Za-z0-9_./][A-Za-z0-9_./-]*( [A-Za-z0-9_.,:/+-]+)*", text):
        return text
    coded = base64.b64encode(os.fsencode(text)).decode()
    silence = " 2>/dev/null" if quiet else ""
    return f"exec /bin/sh -c 'eval \"exec $(printf %s $0 | base64 -d){silence}\"' {coded}"


def _send(channel: paramiko.Channel, piece: bytes) -> bool:
    """Send all of it; False if the other side takes no more. Raises TimeoutError."""
    try:
        channel.sendall(piece)
    except TimeoutError:
        raise
    except BROKEN:
        return False
    return True


def _feed(channel: paramiko.Channel, data: bytes) -> None:
    with contextlib.suppress(*BROKEN):  # a command need not read its input
        for _, piece in _pieces(data, channel.out_max_packet_size - 64):
            channel.sendall(piece)
        channel.shutdown_write()


def _collect(channel: paramiko.Channel, receive: Callable[[int], bytes], into: list[bytes], deadline: float) -> bool:
    """All bytes of one output, until its end; False if the deadline came first."""
    while True:
        channel.settimeout(max(0.0, deadline - time.monotonic()))
        try:
            data = receive(CHUNK)
        except TimeoutError:
            return False
        if not data:
            return True
        into.append(data)


def _pieces(source: Path | bytes, size: int) -> Iterator[tuple[int, bytes]]:
    """Pairs of the bytes so far, this piece included, and the piece."""
    if isinstance(source, bytes):
        for start in range(0, len(source), size):
            yield min(start + size, len(source)), source[start : start + size]
        return
    sent = 0
    with open(source, "rb") as file:
        while piece := file.read(size):
            sent += len(piece)
            yield sent, piece
