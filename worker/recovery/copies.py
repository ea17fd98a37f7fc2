"""On disks of their own, a place keeps copies of other places' parts too: so a machine may go, and nothing with it.

The places stand in a ring, in the order of their keepers, and each brings the files of those before it. They go through
the attempt's store, a block at a time: no other door is opened, and a rank of an older attempt has no part in it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch.distributed import Store  # type: ignore[attr-defined]

from worker.checkpoint import verify
from worker.checkpoint.manifest import FileEntry
from worker.errors import CheckpointError
from worker.recovery.place import Place

BLOCK = 4 << 20
WINDOW = 4
"""Blocks in the store that nobody has fetched yet, for each place."""
POLL = 0.01

Files = Mapping[str, FileEntry]


def bring(store: Store, place: Place, step: int, folder: Path, files: Files, copies: int, timeout: float) -> None:
    """Put the parts of the ``copies`` places before this one into ``folder``. All keepers call this at once.

    Raises:
        OSError: they cannot be written here. RuntimeError: the store is gone.
        CheckpointError: another place does not take part in time, or what came is damaged.
    """
    ring = place.keepers
    here = ring.index(place.rank)
    for distance in range(1, min(copies, len(ring) - 1) + 1):
        before, behind = ring[here - distance], ring[(here + distance) % len(ring)]
        moving = {
            f"rank {before} has not given": _take(
                store, f"copies/{step}/{before}/{distance}", folder, _of(place, files, before)
            ),
            f"rank {behind} has not taken": _give(
                store, f"copies/{step}/{place.rank}/{distance}", folder, _of(place, files, place.rank)
            ),
        }
        _together(moving, step, timeout)


def _of(place: Place, files: Files, keeper: int) -> Files:
    return {name: entry for name, entry in files.items() if place.keeper_of[entry.rank] == keeper}


def _together(moving: dict[str, Iterator[bool]], step: int, timeout: float) -> None:
    """Let all of them go on in turns; each yields whether it got any further."""
    deadline = time.monotonic() + timeout
    while moving:
        went = {who: next(each, None) for who, each in moving.items()}
        moving = {who: moving[who] for who, further in went.items() if further is not None}
        if any(further is not False for further in went.values()):
            deadline = time.monotonic() + timeout
        elif time.monotonic() > deadline:
            hint = "checkpoint.timeout sets the limit, in seconds; checkpoint.copies=0 makes no copies"
            raise CheckpointError(f"{next(iter(moving))} its copy of checkpoint step-{step} for {timeout:g} s", hint)
        else:
            time.sleep(POLL)


def _give(store: Store, key: str, folder: Path, files: Files) -> Iterator[bool]:
    for number, block in enumerate(_blocks(folder, files)):
        while number >= WINDOW and store.check([f"{key}/{number - WINDOW}"]):
            yield False
        store.set(f"{key}/{number}", block)  # type: ignore[arg-type]  # it takes bytes, whatever its types say
        yield True


def _blocks(folder: Path, files: Files) -> Iterator[bytes]:
    for name in files:
        with (folder / name).open("rb") as file:
            while block := file.read(BLOCK):
                yield block


def _take(store: Store, key: str, folder: Path, files: Files) -> Iterator[bool]:
    number = 0
    for name, entry in files.items():
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(folder / name, flags, 0o600), "wb") as file:
            while file.tell() < entry.bytes:
                while not store.check([f"{key}/{number}"]):
                    yield False
                file.write(store.get(f"{key}/{number}"))
                store.delete_key(f"{key}/{number}")
                number += 1
                yield True
            file.flush()
            os.fsync(file.fileno())
        verify.check(folder, name, entry)
