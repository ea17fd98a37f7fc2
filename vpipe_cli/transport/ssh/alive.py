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
    if transport.is_active():
        transport.join(0.2)
    return not transport.is_active()


def watch(transport: paramiko.Transport) -> None:
    """Close a connection whose peer does not answer. Counts waits, not the clock: a laptop may sleep in between."""
    while transport.is_active():
        transport.join(BEAT)
        answered = threading.Event()
        threading.Thread(target=_ping, args=[transport, answered], daemon=True).start()
        if not any(answered.wait(0.5) for _ in range(int(SILENCE / 0.5))):
            transport.close()


def _ping(transport: paramiko.Transport, answered: threading.Event) -> None:
    with contextlib.suppress(*BROKEN):
        transport.global_request("keepalive@openssh.com", wait=True)
    answered.set()
