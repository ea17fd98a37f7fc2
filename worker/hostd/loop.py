"""One thread that waits for everything at once: pipes, sockets, signals, children."""

from __future__ import annotations

import os
import selectors
import signal
import socket
from typing import Any, Callable, Iterator, Tuple

TICK = 0.2  # seconds between two looks at what makes no noise: files, deadlines


class Loop:
    """A selector whose keys carry what to call, woken by signals."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.terminated = False
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        heard, wake = socket.socketpair()
        for end in (heard, wake):
            end.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        self._wake = wake  # kept open
        self.watch(heard, lambda: heard.recv(4096))
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "terminated", True))
        for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # not SIG_IGN, which ranks would inherit

    def watch(self, what: Any, then: Callable[[], Any]) -> None:
        """Call ``then`` in every turn in which ``what`` (a socket or a descriptor) has something to read."""
        self._selector.register(what, selectors.EVENT_READ, then)

    def forget(self, what: Any) -> None:
        """Watch it no longer."""
        self._selector.unregister(what)

    def turn(self) -> None:
        """Wait for something to read, a signal, or the next tick."""
        for key, _ in self._selector.select(TICK):
            key.data()


def ended_children() -> Iterator[Tuple[int, int]]:
    """Pid and wait status of every child that has ended, reaped."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status
