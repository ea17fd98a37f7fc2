"""Torch's own profile of the first steps that are recorded: every operator, and the kernels of a GPU."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

CLOCK = "vpipe clock "
"""Begins the name of a span that tells the monotonic nanoseconds of its beginning: torch counts on another clock."""
MARKS = 5
"""Such spans: each begins a little after the time in its name, on a busy machine a millisecond or more."""


class TorchProfile:
    """To be told when a window of recorded steps begins and ends; of all of them it profiles the first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._profile: profile | None = None
        self._is_done = False

    def __call__(self, is_on: bool) -> None:
        """A window begins or ends."""
        if is_on and not self._is_done:
            self._begin()
        elif not is_on and self._profile is not None:
            self._end(self._profile)

    def _begin(self) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes lines of its own into the log
        gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self._is_done, self._profile = True, profile(activities=[ProfilerActivity.CPU, *gpu])
        self._profile.start()
        for _ in range(MARKS):
            with record_function(f"{CLOCK}{time.monotonic_ns()}"):
                pass

    def _end(self, running: profile) -> None:
        """Write it aside and rename it. A full disk costs the profile, never the run."""
        self._profile = None
        running.stop()
        aside = self._path.with_name(f"aside-{os.getpid()}.json")
        with suppress(OSError, RuntimeError):
            running.export_chrome_trace(str(aside))
            aside.chmod(0o600)
            aside.replace(self._path)
        aside.unlink(missing_ok=True)
