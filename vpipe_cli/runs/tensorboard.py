"""Scalars as a TensorBoard event file, written without TensorBoard: records of a length, two checksums, and a message.

A record is the length in 8 bytes, its masked CRC-32C, the message, its masked CRC-32C. The message is a protocol
buffer ``Event``: wall time (field 1, double), step (2, varint), file version (3, text) or summary (5). A summary holds
values (1), each of a tag (1, text) and a number (2, float).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import cache
from pathlib import Path

Scalar = tuple[float, int, str, float]
"""Unix time, step, tag, value."""


def write(path: Path, scalars: Iterable[Scalar]) -> int:
    """Write an event file anew; how many scalars it has."""
    count = 0
    with path.open("wb") as file:
        for time, step, tag, value in scalars:
            if not count:
                file.write(record(_double(1, time) + _bytes(3, b"brain.Event:2")))
            file.write(record(event(time, step, tag, value)))
            count += 1
    return count


def event(time: float, step: int, tag: str, value: float) -> bytes:
    """One scalar as an ``Event``."""
    scalar = _bytes(1, tag.encode()) + b"\x15" + struct.pack("<f", value)
    return _double(1, time) + b"\x10" + _varint(step) + _bytes(5, _bytes(1, scalar))


def record(data: bytes) -> bytes:
    """A message framed with its length and checksums."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _masked(length)) + data + struct.pack("<I", _masked(data))


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@cache
def _table() -> list[int]:
    found = []
    for number in range(256):
        for _ in range(8):
            number = (number >> 1) ^ (0x82F63B78 if number & 1 else 0)
        found.append(number)
    return found


def _masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _bytes(field: int, data: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(data)) + data


def _double(field: int, value: float) -> bytes:
    return bytes([field << 3 | 1]) + struct.pack("<d", value)
