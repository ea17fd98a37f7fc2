"""A process on a terminal of its own, and all that it has drawn there."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import termios

from tests.rig import wait_for


class Terminal:
    """80 columns and 24 lines, unless told otherwise."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self._fd, theirs = os.openpty()
        self.resize(80, 24)
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self.drawn = ""

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def _read(self) -> None:
        while select.select([self._fd], [], [], 0)[0]:
            try:
                self.drawn += os.read(self._fd, 65536).decode(errors="replace")
            except OSError:  # the other end is closed
                return

    def shows(self, text: str) -> bool:
        self._read()
        return text in self.drawn

    def end(self) -> int:
        """The exit status, once there is one."""
        wait_for(lambda: self.shows("") and self.process.poll() is not None)
        self._read()
        return self.process.returncode
