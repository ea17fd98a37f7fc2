"""The bytes of a file that is sent, piece by piece."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

CHUNK = 1 << 20


def size_of(source: Path | bytes) -> int:
    """How many bytes there are to send."""
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def pieces(source: Path | bytes, size: int = CHUNK) -> Iterator[tuple[int, bytes]]:
    """Pairs of the bytes so far, this piece included, and the piece, of at most ``size`` bytes."""
    sent = 0
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        while piece := file.read(size):
            sent += len(piece)
            yield sent, piece
