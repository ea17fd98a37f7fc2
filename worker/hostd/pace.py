"""How long nothing may happen before a run is called stuck: as its file says, or less where its own steps are short."""

from __future__ import annotations

from collections import deque
from typing import Deque, Optional, Tuple

ENOUGH = 50  # steps that have ended before anything is learned from them
RECENT = 50  # of the looks at the ranks that saw a new step, those that are remembered
FACTOR = 20.0  # times the slowest of these; a machine may well be ten times slower for a while

FIRST = 2  # new steps that are seen without learning: the one that ends the start, and the one that ends the first step


class Pace:
    """What the steps of one attempt have taken so far.

    A step that saves or evaluates counts like any other and makes the limit longer. Where several steps have ended
    between two looks, they share the time; how uneven they were is what the floor is for.

    Args:
        timeout: the limit where nothing is learned; no other is longer.
        floor: no limit that is learned is shorter; None: nothing is learned.
    """

    def __init__(self, timeout: float, floor: Optional[float] = None) -> None:
        self._timeout, self._floor = timeout, floor
        self._took: Deque[float] = deque(maxlen=RECENT)
        self._step = self._ended = self._seen = 0
        self._since = 0.0

    def saw(self, step: int, moment: float) -> None:
        """Note that a rank is in a step; only the newest one counts, for ranks of a pipeline are apart."""
        if step <= self._step:
            return
        if self._seen >= FIRST:
            self._took.append((moment - self._since) / (step - self._step))
            self._ended += step - self._step
        self._step, self._since, self._seen = step, moment, self._seen + 1

    def limit(self) -> Tuple[float, str]:
        """Seconds without any progress that are too long, and where that number comes from."""
        if self._floor is not None and self._ended >= ENOUGH:
            slowest = max(self._took)
            learned = max(self._floor, FACTOR * slowest)
            if learned < self._timeout:
                return learned, self._explained(slowest)
        first = "; run.first_step_timeout is for the first step alone" if self._seen < FIRST else ""
        return self._timeout, f"run.stall_timeout{first}"

    def _explained(self, slowest: float) -> str:
        if FACTOR * slowest > (self._floor or 0.0):
            how = f"{FACTOR:g} times the slowest of the last steps, {slowest:.2g} s"
        else:
            how = f"run.stall_floor, since the last steps took {slowest:.2g} s at most"
        return f"learned: {how}; `run.stall_floor: null` leaves run.stall_timeout, {self._timeout:g} s"
