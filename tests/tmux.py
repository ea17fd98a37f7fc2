"""A command in a terminal that can be read: what tmux shows of it, line by line."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

CLEAN = ("env", "-u", "NO_COLOR", "-u", "COLUMNS", "-u", "LINES")
"""Whoever runs the tests may have fixed a size, as readline does of its own accord."""


class Screen:
    """A tmux of its own with one window."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def tmux(self, *arguments: str) -> str:
        command = ["tmux", "-S", str(self._socket), "-f", "/dev/null", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    def resize(self, width: int, height: int) -> None:
        self.tmux("resize-window", "-x", str(width), "-y", str(height))

    def press(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def lines(self) -> list[str]:
        """What stands there, from the first line to the last that is not empty."""
        return self.tmux("capture-pane", "-p").rstrip().split("\n")

    def shows(self, text: str) -> bool:
        return text in "\n".join(self.lines())


@contextmanager
def screen(folder: Path, width: int, height: int, command: Sequence[str], env: dict[str, str]) -> Iterator[Screen]:
    """A screen with ``command`` on it, and its exit status once it has ended. Skips the test where there is no tmux."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is missing")
    made = Screen(folder / "tmux")
    given = [f"{name}={value}" for name, value in env.items()]
    line = f"trap : INT; {shlex.join([*CLEAN, *given, *command])}; echo ended with $?; read -r _"
    made.tmux("new-session", "-d", "-x", str(width), "-y", str(height), "sh", "-c", line)
    try:
        yield made
    finally:
        made.tmux("kill-server")
