"""Time stamps, events and files, written so that no reader sees half of one and a full disk ends nothing."""

from __future__ import annotations

import json
import os
import signal
import time
import zlib
from datetime import datetime, timezone
from typing import Any, Dict

BOOT = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


class Refused(Exception):
    """This run cannot be started; the message says why."""


class Appender:
    """An append-only file of whole lines. A full disk costs lines, never the run."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, lines: bytes, durable: bool = False) -> None:
        """Append whole lines in one write, on a line of their own even after one that any writer left torn."""
        try:
            rest = (b"\n" if self._torn() else b"") + lines
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            if durable:
                os.fsync(self._fd)
        except OSError as error:
            note(f"cannot write {self._path}: {error}")

    def _torn(self) -> bool:
        size = os.fstat(self._fd).st_size
        return size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"

    def close(self) -> None:
        """Nothing more will be written."""
        os.close(self._fd)


def note(text: str) -> None:
    """One line to hostd.log; where even that cannot be written, none."""
    try:
        os.write(2, f"{stamp()} {text}\n".encode())
    except OSError:
        pass


def now() -> float:
    """Unix time that never goes back, even when the clock is set: logs and events stay in order."""
    return BOOT + time.clock_gettime(time.CLOCK_BOOTTIME)


def stamp() -> str:
    """The time in UTC with microseconds, as every line of a log begins: ``2026-11-23T12:49:00.123456Z``."""
    return datetime.fromtimestamp(now(), timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def seal(record: Dict[str, Any]) -> str:
    """One line of events.jsonl, exactly as worker.spec.files.seal makes it."""
    body = json.dumps(record, separators=(",", ":"))
    return f'{body[:-1]},"crc":"{zlib.crc32(body.encode()):08x}"}}\n'


def write_atomic(path: str, text: str) -> None:
    """Write aside, fsync, rename: no reader sees half of it."""
    folder, name = os.path.split(path)
    aside = os.path.join(folder, f".{name}.{os.getpid()}")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    fd = os.open(folder, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def read_object(path: str) -> Dict[str, Any]:
    """A JSON object; empty where there is none, or only half of one."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            value = json.load(file)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
