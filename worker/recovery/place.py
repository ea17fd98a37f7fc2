"""Which ranks see the same ``checkpoints/``: all of them on shared storage, those of one host on disks of their own.

In each place the lowest rank, its keeper, makes and commits the folders; so nothing else differs between the two.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from worker.errors import CheckpointError
from worker.rendezvous import Rendezvous


@dataclass(frozen=True)
class Place:
    """The folder as one rank sees it. ``keeper_of`` has, for each rank, the keeper of its place."""

    folder: Path
    rank: int
    keeper_of: tuple[int, ...]

    @property
    def keeps(self) -> bool:
        """Whether this rank is the keeper here."""
        return self.rank == self.keeper_of[self.rank]

    @property
    def keepers(self) -> tuple[int, ...]:
        """Those of all places, rank 0 first."""
        return tuple(sorted(set(self.keeper_of)))


def find(folder: Path, rendezvous: Rendezvous) -> Place:
    """Find out, by a file from each rank, who sees whom. All ranks call this together.

    Raises:
        CheckpointError: the folder cannot be made or written.
        StallError, PeerLost: another rank does not take part.
    """
    # The random part keeps the files of two runs, or of a rank that was killed here, apart.
    marks = [f".rank-{rank}-{mark}" for rank, mark in enumerate(rendezvous.exchange("marks", os.urandom(8).hex()))]
    mine = folder / marks[rendezvous.rank]
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        mine.touch(mode=0o600)
        rendezvous.exchange("marks are there", "")
        there = set(os.listdir(folder))
        seen = [rank for rank, mark in enumerate(marks) if mark in there]
        views: list[list[int]] = list(map(json.loads, rendezvous.exchange("marks seen", json.dumps(seen))))
    except OSError as error:
        hint = "`checkpoint.every_steps=null` trains without saving anything"
        raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}", hint) from None
    finally:
        with suppress(OSError):
            mine.unlink()
    return Place(folder, rendezvous.rank, tuple(map(min, views)))
