"""A large file while it arrives: hashed and on its way to the disk at once, so that little is left to do at its end.

Python 3.8, standard library only.
"""

from __future__ import annotations

import ctypes
import queue
import threading
from typing import Any

from vpipe_cli.onhost.files import write_all

STRIDE = 8 << 20  # bytes after which the kernel is told to bring them to the disk
WAITING = 32  # pieces of at most CHUNK that may wait to be hashed
SYNC_FILE_RANGE_WRITE = 2
LIBC = ctypes.CDLL(None)


class Arrival:
    """Writes pieces at their place in an open file, and takes their digest in a thread beside."""

    def __init__(self, descriptor: int, at: int, taken: Any) -> None:
        self.at = self._begun = at
        self._descriptor, self._taken = descriptor, taken
        self._pieces: queue.Queue[bytes] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._hash, daemon=True)
        self._thread.start()

    def take(self, piece: bytes) -> None:
        """Write what came next. Raises OSError."""
        write_all(self._descriptor, piece)
        self._pieces.put(piece)
        self.at += len(piece)
        if self.at - self._begun >= STRIDE:
            write_back(self._descriptor, self._begun, self.at - self._begun)
            self._begun = self.at

    def digest(self) -> str:
        """The sha256 of all of it. Nothing comes after."""
        self._pieces.put(b"")
        self._thread.join()
        found: str = self._taken.hexdigest()
        return found

    def _hash(self) -> None:
        for piece in iter(self._pieces.get, b""):
            self._taken.update(piece)


def write_back(descriptor: int, start: int, count: int) -> None:
    """Begin to bring this part of a file to the disk, if the kernel can. A hint: fsync comes all the same."""
    begin = getattr(LIBC, "sync_file_range", None)
    if begin:
        begin(descriptor, ctypes.c_int64(start), ctypes.c_int64(count), SYNC_FILE_RANGE_WRITE)
