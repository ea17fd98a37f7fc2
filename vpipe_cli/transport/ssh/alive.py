"""Whether the other end of a connection still answers, which TCP alone takes many minutes to doubt."""

from __future__ import annotations

import contextlib
import threading

import paramiko

BEAT, SILENCE = 5.0, 10.0  # seconds between two signs of life, and to wait for an answer to one

BROKEN = (paramiko.SSHException, EOFError, OSError)
"""What paramiko raises where a connection is no more, or is just breaking."""


def broken(channel: paramiko.Channel) -> bool:
    """Whether the connection a channel was opened on is no more; a channel may notice a moment before it does."""
    transport = channel.get_transport()
    transport.join(0.2)
    return not transport.is_active()


def watch(transport: paramiko.Transport) -> None:
    """Close a connection whose peer does not answer. Counts waits, not the clock: a laptop may sleep in between."""
    while transport.is_active():
        transport.join(BEAT)
        ping = threading.Thread(target=_ping, args=[transport], daemon=True)
        ping.start()
        for _ in range(int(SILENCE / 0.5)):
            ping.join(0.5)
        if ping.is_alive():
            transport.close()


def _ping(transport: paramiko.Transport) -> None:
    """Ask for an answer, and wait for it."""
    with contextlib.suppress(*BROKEN):
        transport.global_request("keepalive@openssh.com", wait=True)
