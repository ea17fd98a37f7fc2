"""What runs end with that nobody hurts: each is made once for all cases, seeds and processes of a battery."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from worker.spec.files import write_atomic
from worker.spec.records import Result


class References:
    """A folder of results, each under a digest of the settings it came from."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, settings: Sequence[str], make: Callable[[], Result]) -> Result:
        """The result that was kept for these settings, or that of ``make``; who else asks meanwhile waits for it."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        kept = self._folder / f"{hashlib.sha256(repr(list(settings)).encode()).hexdigest()}.json"
        lock = os.open(kept.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kept.exists():
                write_atomic(kept, make().model_dump_json())
            return Result.model_validate_json(kept.read_bytes())
        finally:
            os.close(lock)
