"""How ranks of one machine find each other: each has a door, whose secret only ranks of the job know."""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path

GREETING = struct.Struct("<Q16s")
"""Rank of who connects, and the secret of who listens."""


class Door:
    """Where other ranks of this machine find this one. ``card`` tells them; only they can use it."""

    def __init__(self) -> None:
        self._secret = os.urandom(16)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(_name(self._secret))
        self._listener.listen(128)

    @property
    def card(self) -> bytes:
        """48 bytes for the other ranks: which machine this is, and the secret that opens the door."""
        return machine() + self._secret

    def meet(self, rank: int, cards: list[bytes], timeout: float) -> dict[int, socket.socket]:
        """Connect with every rank of this machine, which all do this at once: a socket to each, by rank.

        Raises ConnectionError, TimeoutError.
        """
        here = [other for other, card in enumerate(cards) if other != rank and card[:32] == machine()]
        lines = {other: _call(rank, cards[other][32:], timeout) for other in here if other < rank}
        deadline = time.monotonic() + timeout
        while len(lines) < len(here):
            self._listener.settimeout(max(0.01, deadline - time.monotonic()))
            line, _ = self._listener.accept()
            line.settimeout(timeout)
            caller = self._admit(line)
            if caller is not None and caller in here:
                lines[caller] = line
            else:
                line.close()
        return lines

    def close(self) -> None:
        """Let nobody else in."""
        self._listener.close()

    def _admit(self, line: socket.socket) -> int | None:
        """Anyone on the machine can see the door; only ranks of the job know its secret."""
        with suppress(OSError, struct.error):
            rank, secret = GREETING.unpack(line.recv(GREETING.size))
            if hmac.compare_digest(secret, self._secret):
                return int(rank)
        return None


def machine() -> bytes:
    """32 bytes that are alike for two processes that can share memory through a local socket."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    return hashlib.sha256(boot + os.readlink("/proc/self/ns/net").encode()).digest()


def _name(secret: bytes) -> bytes:
    return b"\0vpipe-" + hashlib.sha256(secret).hexdigest().encode()


def _call(rank: int, secret: bytes, timeout: float) -> socket.socket:
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    line.settimeout(timeout)
    line.connect(_name(secret))
    line.sendall(GREETING.pack(rank, secret))
    return line
