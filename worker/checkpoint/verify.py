"""No file of a checkpoint is trusted without its hash: files are read once, and what was hashed is what is used."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from worker.checkpoint import manifest
from worker.checkpoint.manifest import FileEntry
from worker.errors import CheckpointError

BLOCK = 1 << 22


def content(path: Path, name: str, entry: FileEntry) -> bytes:
    """The bytes of one file of the checkpoint in ``path``. Raises CheckpointError naming it and what is wrong."""
    with _opened(path / name, entry) as file:
        data = file.read(entry.bytes)
        _compare(path / name, entry, hashlib.sha256(data).hexdigest())
    return data


def check(path: Path, name: str, entry: FileEntry) -> None:
    """Read one file and compare it with what was written. Raises CheckpointError as ``content`` does."""
    total = hashlib.sha256()
    with _opened(path / name, entry) as file:
        while block := file.read(BLOCK):
            total.update(block)
        _compare(path / name, entry, total.hexdigest())


def problems(path: Path, names: Collection[str] | None = None) -> list[str]:
    """What is wrong with the checkpoint in ``path``; empty when it can be used.

    Args:
        names: of the files to read; all if None.
    """
    found: list[str] = []
    try:
        listed = manifest.read(path).files
    except CheckpointError as error:
        return [error.message]
    for name, entry in listed.items():
        if names is None or name in names:
            try:
                check(path, name, entry)
            except CheckpointError as error:
                found.append(error.message)
    return found


@contextmanager
def _opened(path: Path, entry: FileEntry) -> Iterator[IO[bytes]]:
    """A plain file, not a link, of the size it should have."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path} is not a plain file")
        if status.st_size != entry.bytes:
            raise CheckpointError(f"{path} has {status.st_size} bytes instead of {entry.bytes}")
        try:
            yield file
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None


def _compare(path: Path, entry: FileEntry, digest: str) -> None:
    if digest != entry.sha256:
        raise CheckpointError(f"{path} was changed: its sha256 is {digest[:12]}..., {entry.sha256[:12]}... was written")
