"""The dependency walk: when each action of a schedule starts and ends, or who waits for whom for ever.

A rank does its actions in order. A forward waits for the stage before, a backward for the stage behind; what arrives is
kept until it is wanted, and a sender goes on at once. An update may wait for the stage's other ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from worker.errors import ScheduleError
from worker.schedule.action import Action, Kind

Hop = float | Sequence[float]
"""Time from one rank to another: one number, or one for the cut behind each stage but the last."""

Result = tuple[str, int, int]
"""What others wait for: F, B or U, the stage it comes from, the minibatch."""


class Span(NamedTuple):
    """An action with its time."""

    action: Action
    start: float
    end: float


def walk(
    ranks: Sequence[Sequence[Action]], duration: Callable[[Action], float], hop: Hop = 0.0, joint: bool = False
) -> list[list[Span]]:
    """The spans of every rank, in its own order; every action as early as it can be.

    A hop is added where a tensor goes to another rank; stages of one rank hand over at once.

    Args:
        joint: whether ranks that have the same update make it together, as replicas of a stage do.
    Raises:
        ScheduleError: on a deadlock, with the action at which each rank stands and what it waits for.
    """
    return _Walk(ranks, duration, hop, joint).run()


class _Walk:
    def __init__(
        self, ranks: Sequence[Sequence[Action]], duration: Callable[[Action], float], hop: Hop, joint: bool
    ) -> None:
        self._ranks = ranks
        updates = (action for actions in ranks for action in actions if joint and action.kind is Kind.UPDATE)
        self._absent = Counter(("U", update.stage, update.minibatch) for update in updates)
        self._duration = duration
        self._last = max((action.stage for actions in ranks for action in actions), default=0)
        cuts = self._last
        self._hops: Sequence[float] = [hop] * cuts if isinstance(hop, float | int) else hop
        if len(self._hops) < cuts:
            raise ScheduleError(f"{len(self._hops)} hop times for {cuts} cuts")
        self._spans: list[list[Span]] = [[] for _ in ranks]
        self._done: dict[Result, tuple[float, int]] = {}
        self._met: dict[Result, float] = {}
        self._waiting: dict[Result, list[int]] = {}

    def run(self) -> list[list[Span]]:
        ready = list(range(len(self._ranks)))
        while ready:
            ready += self._advance(ready.pop())
        if any(len(spans) < len(actions) for spans, actions in zip(self._spans, self._ranks, strict=True)):
            raise ScheduleError("deadlock: " + "; ".join(self._standing()))
        return self._spans

    def _advance(self, rank: int) -> list[int]:
        """Do the actions of ``rank`` up to the first that must wait; the ranks that may go on after that."""
        actions, spans = self._ranks[rank], self._spans[rank]
        woken: list[int] = []
        clock = spans[-1].end if spans else 0.0
        for position in range(len(spans), len(actions)):
            action = actions[position]
            if self._absent and action.kind is Kind.UPDATE:
                met = self._meet(rank, ("U", action.stage, action.minibatch), clock, woken)
                if met is None:
                    break
                clock = met
            start, needed = clock, self._needed(action)
            if needed is not None:
                if needed not in self._done:
                    self._waiting.setdefault(needed, []).append(rank)
                    break
                ended, sender = self._done[needed]
                start = max(clock, ended if sender == rank else ended + self._hops[min(needed[1], action.stage)])
            clock = start + self._duration(action)
            spans.append(Span(action, start, clock))
            if _gives(action.kind):
                result = ("F" if action.kind is Kind.FORWARD else "B", action.stage, action.minibatch)
                self._done[result] = (clock, rank)
                woken += self._waiting.pop(result, [])
        return woken

    def _meet(self, rank: int, update: Result, clock: float, woken: list[int]) -> float | None:
        """When all ranks that have ``update`` are there; None, and ``rank`` waits, while one is missing."""
        if update not in self._done:
            self._absent[update] -= 1
            self._met[update] = max(self._met.get(update, clock), clock)
            if self._absent[update]:
                self._waiting.setdefault(update, []).append(rank)
                return None
            self._done[update] = self._met[update], rank
            woken += self._waiting.pop(update, [])
        return max(clock, self._done[update][0])

    def _needed(self, action: Action) -> Result | None:
        """The result of another stage that ``action`` cannot start without."""
        if action.kind is Kind.FORWARD:
            return ("F", action.stage - 1, action.minibatch) if action.stage else None
        if _gives(action.kind):
            return ("B", action.stage + 1, action.minibatch) if action.stage < self._last else None
        return None

    def _standing(self) -> list[str]:
        """For each rank that did not end: where it stands and what it waits for."""
        waits = {rank: result for result, waiters in self._waiting.items() for rank in waiters}
        return [
            f"rank {rank} stands at {self._ranks[rank][len(self._spans[rank])]} (action {len(self._spans[rank])}), "
            f"which waits for {stage}{letter}{minibatch}"
            for rank, (letter, stage, minibatch) in sorted(waits.items())
        ]


def _gives(kind: Kind) -> bool:
    """Whether another stage waits for the result. By identity: hashing an Enum would take most of a walk."""
    return kind is Kind.FORWARD or kind is Kind.INPUT_GRAD or kind is Kind.BACKWARD
