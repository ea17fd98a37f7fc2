"""A large file while it arrives: hashed and on its way to the disk at once, so that little is left to do at its end.

Python 3.8, standard library only.
"""

from __future__ import annotations

import ctypes
import os
import queue
import threading
from typing import Any, Callable, Optional

from vpipe_cli.onhost.files import write_all

PIECE = 1 << 20  # bytes written and hashed at a time
BUFFERS = 4  # pieces that may be on their way
STRIDE = 8 << 20  # bytes after which the kernel is told to bring them to the disk
SYNC_FILE_RANGE_WRITE = 2
LIBC = ctypes.CDLL(None)

ReadInto = Callable[[memoryview], int]
"""Fills the beginning of what it is given and says how much of it; 0 at the end."""


class Arrival:
    """Writes what comes at its place in an open file, and takes the digest of it in a thread beside."""

    def __init__(self, descriptor: int, at: int, taken: Any) -> None:
        self.at = self._begun = at
        self._descriptor, self._taken = descriptor, taken
        self._free: queue.Queue[memoryview] = queue.Queue()
        self._full: queue.Queue[Optional[memoryview]] = queue.Queue()
        for _ in range(BUFFERS):
            self._free.put(memoryview(bytearray(PIECE)))
        self._thread = threading.Thread(target=self._hash, daemon=True)
        self._thread.start()

    def take(self, read: ReadInto, most: int) -> bool:
        """Take in a piece, of ``most`` bytes at most. False where there was none any more. Raises OSError."""
        buffer = self._free.get()
        wanted, have = min(most, PIECE), 0
        while have < wanted and (more := read(buffer[have:wanted])):
            have += more
        write_all(self._descriptor, buffer[:have])
        self._full.put(buffer[:have])
        self.at += have
        if self.at - self._begun >= STRIDE:
            write_back(self._descriptor, self._begun, self.at - self._begun)
            self._begun = self.at
        return have > 0

    def digest(self) -> str:
        """The sha256 of all of it. Nothing comes after."""
        self._full.put(None)
        self._thread.join()
        found: str = self._taken.hexdigest()
        return found

    def _hash(self) -> None:
        for piece in iter(self._full.get, None):
            self._taken.update(piece)
            whole: Any = piece.obj
            self._free.put(memoryview(whole))


def from_input(buffer: memoryview) -> int:
    """What standard input has at the moment."""
    return os.readv(0, [buffer])


def write_back(descriptor: int, start: int, count: int) -> None:
    """Begin to bring this part of a file to the disk, if the kernel can. A hint: fsync comes all the same."""
    begin = getattr(LIBC, "sync_file_range", None)
    if begin:
        begin(descriptor, ctypes.c_int64(start), ctypes.c_int64(count), SYNC_FILE_RANGE_WRITE)
