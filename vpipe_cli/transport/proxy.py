"""A ProxyCommand of the user's ssh configuration: the way to a host that the user's own program opens."""

from __future__ import annotations

import socket
import subprocess
import threading


class Proxy(socket.socket):
    """The user's own ProxyCommand, run as ssh runs it, as a socket. It ends with it: its far end may be dead."""

    def __init__(self, command: str) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(fileno=ours.detach())
        argv = ["/bin/sh", "-c", f"exec {command}"]
        with theirs:
            end, nowhere = theirs.fileno(), subprocess.DEVNULL
            self.process = subprocess.Popen(argv, stdin=end, stdout=end, stderr=nowhere, start_new_session=True)
        threading.Thread(target=self.process.wait, daemon=True).start()

    def close(self) -> None:
        """Also ends the command."""
        super().close()
        self.process.terminate()
