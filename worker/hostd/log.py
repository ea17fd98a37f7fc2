"""What a rank printed, as one file that grows, and whose middle is given up once it is too large.

Offsets never change, for readers follow by them: the file is no shorter for what it has lost, there is a hole in it.
"""

from __future__ import annotations

import ctypes
import os
from typing import List

from .words import Appender, note, stamp

LIMIT = 1 << 30
"""Bytes of a rank's log that its host keeps, where the launch says nothing else."""
MARKS = 64
"""Into so many parts the limit is divided by places where a kept tail may begin."""
KEEP_SIZE, PUNCH_HOLE = 1, 2


class RankLog(Appender):
    """A rank's log of at most ``limit`` bytes on the disk, or without a limit if that is 0.

    One that has grown over it keeps its first half, and of what follows the newest quarter to half; lines stay whole,
    and where some are missing one says so. Where the file system knows no holes nothing more is written.
    """

    def __init__(self, path: str, limit: int = LIMIT) -> None:
        super().__init__(path)
        self._limit = limit
        self._size = os.fstat(self._fd).st_size
        self._head, self._head_stamp = 0, ""  # where the part that is kept for good ends, and when that was
        self._hole = 0  # where the hole behind it ends
        self._marks: List[int] = []  # beginnings of lines behind the head, some way apart
        self._full = False

    def write(self, lines: bytes, durable: bool = False) -> None:
        """Append whole lines, if there is room for any."""
        if self._full:
            return
        super().write(lines, durable)
        self._size += len(lines)
        if not self._limit:
            return
        if not self._head and self._size >= self._limit // 2:
            self._head = self._hole = self._size = os.fstat(self._fd).st_size
            self._head_stamp = stamp()
        if self._head and self._size - (self._marks or [self._head])[-1] > self._limit // MARKS:
            self._size = os.fstat(self._fd).st_size  # a full disk may have cost lines
            self._marks.append(self._size)
        if self._head and self._size - self._hole > self._limit // 2 and self._marks:
            self._make_room()

    def _make_room(self) -> None:
        """Give up what lies between the head and the newest quarter of the limit."""
        begin = next((mark for mark in self._marks if mark >= self._size - self._limit // 4), self._marks[-1])
        if not punch(self._fd, self._head, begin - self._head):
            self._full = True
            super().write(self._notice(stamp(), "nothing more is written, for this file system knows no holes"))
            return
        if self._hole == self._head:
            self._say(self._notice(self._head_stamp, "what it printed between this line and the next is gone"), begin)
        self._hole, self._marks = begin, [mark for mark in self._marks if mark > begin] or [begin]

    def _notice(self, time: str, text: str) -> bytes:
        note(f"{self._path} is over its limit of {self._limit} bytes: {text}")
        return f"{time} e vpipe: this log is over its limit of {self._limit} bytes: {text}\n".encode()

    def _say(self, line: bytes, end: int) -> None:
        """Make a line the last one of the head, in the hole that ends at ``end``."""
        if self._head + len(line) > end:
            return
        fd = os.open(self._path, os.O_WRONLY)  # the other descriptor writes at the end only
        try:
            self._head += os.pwrite(fd, line, self._head)
        except OSError as error:
            note(f"cannot write {self._path}: {error}")
        finally:
            os.close(fd)


def punch(fd: int, offset: int, length: int) -> bool:
    """Make a hole in a file, whose size stays; whether that could be done."""
    try:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
        sizes = [ctypes.c_int64(offset), ctypes.c_int64(length)]
        return bool(fallocate(fd, KEEP_SIZE | PUNCH_HOLE, *sizes) == 0)
    except (OSError, AttributeError):
        return False
