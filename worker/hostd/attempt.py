"""What the head knows of one attempt: who is ready, who ended, who moves, and who was the first to fail."""

from __future__ import annotations

import time
from typing import Any, Dict, List, Optional, Set, Tuple

from .pace import Pace

MARGIN = 2.0  # seconds: ranks are looked at once a second, and what they say has to travel

Failure = Dict[str, Any]
"""rank, stage, host, cause, step; ``own`` (not a consequence of another's), ``permanent`` (a restart heals nothing)."""


class Attempt:
    """One attempt of a run.

    Args:
        gang: describes every rank: rank, stage, host, device.
        pace: tells when it is stuck; default: never.
    """

    def __init__(self, number: int, gang: List[Dict[str, Any]], pace: Optional[Pace] = None) -> None:
        self.number = number
        self.began = time.monotonic()
        self.running = False
        self.verdict, self.why = "", ""
        self.gang = {rank["rank"]: rank for rank in gang}
        self.left: Set[str] = {rank["host"] for rank in gang}  # hosts that are not done
        self._ready: Set[int] = set()
        self._ended: Set[int] = set()
        self._failures: List[Failure] = []
        self._finished: List[Failure] = []
        self.moves = Moves(pace or Pace(float("inf")))

    def ready(self, rank: int) -> bool:
        """Note that a rank is ready; whether it was the last one missing."""
        self._ready.add(rank)
        if self.running or self.verdict or len(self._ready) < len(self.gang):
            return False
        self.running = True
        self.moves.begin()
        return True

    def ended(self, record: Dict[str, Any]) -> bool:
        """Note the end of a rank; whether it ended badly."""
        self._ended.add(record["rank"])
        self.moves.forget(record["rank"])
        bad = bool(record["code"] != 0)
        if bad:
            own = not record["ended_by_us"] and not record["consequence"]
            self._failures.append({**record, "own": own})
        else:
            self._finished.append(record)
        return bad

    def lost(self, host: str, reason: str) -> None:
        """Note that a host is gone, with all its ranks."""
        self.left.discard(host)
        ranks = [rank for rank in self.gang.values() if rank["host"] == host]
        for rank in ranks:
            self._ended.add(rank["rank"])
            self.moves.forget(rank["rank"])
        self.fail(ranks[0]["rank"], f"host {host} is lost: {reason}")

    def fail(self, rank: int, cause: str, step: Optional[int] = None, permanent: bool = False) -> None:
        """Note a failure that the head itself has seen."""
        self._failures.append({**self.gang[rank], "cause": cause, "step": step, "own": True, "permanent": permanent})

    def unready(self) -> List[int]:
        """Ranks that are not ready."""
        return sorted(set(self.gang) - self._ready)

    @property
    def first(self) -> Optional[Failure]:
        """The first to fail by itself, or else the first to fail; by when the head heard of it.

        Where all that failed blame another, and one had ended with status 0 before, that one had left too early.
        """
        own = [failure for failure in self._failures if failure["own"]]
        if self._failures and not own and self._finished:
            return {**self._finished[0], "cause": "exit status 0 before the run was over: what ended it?", "own": True}
        found = own or self._failures
        return found[0] if found else None

    @property
    def first_failure(self) -> Optional[Failure]:
        """The same as the events tell it."""
        first = self.first
        return first and {key: first[key] for key in ("rank", "stage", "host", "cause", "step")}


class Moves:
    """What ranks say of their progress, and since when none of them has moved.

    A thread that lives says nothing: only a counter that grows does. Ranks that say nothing are never called stuck.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._said: Dict[int, List[Any]] = {}
        self._changed: Dict[int, float] = {}
        self._since = time.monotonic()

    def begin(self) -> None:
        """Count from now."""
        self._since = time.monotonic()

    def hear(self, ranks: Dict[str, List[Any]]) -> None:
        """Take in what ranks say: count, step, doing, waiting, limit, stopped."""
        moment = time.monotonic()
        for name, said in ranks.items():
            rank = int(name)
            if rank not in self._said or self._said[rank][0] != said[0]:
                self._changed[rank] = self._since = moment
            self._said[rank] = said
            self._pace.saw(_number(said[1]), moment)

    def forget(self, rank: int) -> None:
        """A rank that has ended holds nobody up."""
        self._said.pop(rank, None)

    def stuck(self) -> Optional[Dict[str, Any]]:
        """The rank that most likely holds up all others, the cause and the step; None while any of them moves."""
        limit, origin = self._limit()
        still = time.monotonic() - self._since
        if not self._said or still <= limit + MARGIN:
            return None
        rank = min(self._said, key=self._blame)
        _, step, doing, waiting, _, stopped = self._said[rank]
        if stopped:
            what = f"stopped by a signal (SIGSTOP) in {doing}"
        else:
            what = f"stuck in {doing}" + (f", waiting for {waiting}" if waiting else "")
        cause = f"{what}: no rank made progress for {still:.0f} s; the limit is {limit:g} s ({origin})"
        return {"rank": rank, "cause": cause, "step": _number(step) or None}

    def _limit(self) -> Tuple[float, str]:
        """That of the run's pace; or that of a rank which does something that may take longer."""
        limit, origin = self._pace.limit()
        own = max((float(said[4]) for said in self._said.values() if said[4]), default=limit)
        longer = "a first step (run.first_step_timeout), a checkpoint or an evaluation may take that long"
        return (own, longer) if own > limit else (limit, origin)

    def _blame(self, rank: int) -> Any:
        """Those that are stopped come first, then those that wait for nobody, then who stands still the longest."""
        *_, waiting, _, stopped = self._said[rank]
        return (not stopped, bool(waiting), self._changed[rank])


def _number(step: str) -> int:
    """The step that a rank is in; 0 before the first, or where it says none."""
    return int(step) if step.isdigit() else 0
