"""A zero-bubble schedule built forward in time: each stage, when free, does the most urgent thing it can.

Input gradients come first, since the stages before wait for them; then forwards, while memory lasts; then weight
gradients, into gaps. What counts as a gap, and how far ahead a stage may run, are Rules that a search tries out.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from worker.schedule.action import Kind
from worker.schedule.setting import Times


@dataclass(frozen=True)
class Rules:
    """How one greedy schedule decides.

    Args:
        steady_gap: least gap, as a share of a weight gradient's time, that one is put into while forwards are left.
        tail_gap: the same when no forward is left.
        waits_for_first: before its first input gradient, a stage starts no forward that would delay it.
        surplus: a stage may be two forwards for each stage from it to the last, and so many more, ahead of its own
            input gradients; None: as many as memory allows.
    """

    steady_gap: float
    tail_gap: float
    waits_for_first: bool
    surplus: int | None


@dataclass(frozen=True)
class Memory:
    """The most a stage may hold, in activations of one minibatch, and the share that waits for the weight gradient."""

    limit: float
    weight_share: float


def greedy(times: Sequence[Times], hop: float, minibatches: int, memory: Memory, rules: Rules) -> list[list[Kind]]:
    """For each stage the kinds of its actions in order; of each kind, minibatches go in order.

    ``memory`` holds at least one minibatch.
    """
    stages = [_Stage(index, len(times), each, minibatches, memory, rules) for index, each in enumerate(times)]
    stages[0].forwards = [0.0] * minibatches
    free = [(0.0, stage.index) for stage in stages]
    idle: dict[int, float] = {}
    while free:
        now, index = heapq.heappop(free)
        stage = stages[index]
        choice = stage.choose(now)
        if choice is None:
            idle[index] = now
        elif isinstance(choice, float):
            heapq.heappush(free, (choice, index))
        else:
            end = stage.do(choice, now)
            heapq.heappush(free, (end, index))
            for receiver, arrivals, arrival in _gives(stages, stage, choice, end, hop):
                arrivals.append(arrival)
                if receiver in idle:
                    heapq.heappush(free, (max(arrival, idle.pop(receiver)), receiver))
    return [stage.order for stage in stages]


def _gives(
    stages: Sequence[_Stage], stage: _Stage, kind: Kind, end: float, hop: float
) -> list[tuple[int, list[float], float]]:
    """What an action that ends at ``end`` makes possible: at which stage, in which list, from when."""
    if kind is Kind.FORWARD and stage is stages[-1]:
        return [(stage.index, stage.inputs, end)]
    if kind is Kind.FORWARD:
        return [(stage.index + 1, stages[stage.index + 1].forwards, end + hop)]
    if kind is Kind.INPUT_GRAD and stage.index:
        return [(stage.index - 1, stages[stage.index - 1].inputs, end + hop)]
    return []


@dataclass
class _Stage:
    """One stage, while its order is being made. ``forwards`` and ``inputs`` are the arrivals known so far."""

    index: int
    stages: int
    times: Times
    minibatches: int
    memory: Memory
    rules: Rules
    forwards: list[float] = field(default_factory=list)
    inputs: list[float] = field(default_factory=list)
    order: list[Kind] = field(default_factory=list)
    done_forwards: int = 0
    done_inputs: int = 0
    done_weights: int = 0

    def choose(self, now: float) -> Kind | float | None:
        """What to start now; else the time to choose again; None: not before something arrives."""
        forward, inputs = self._next_forward(), self._next_input()
        if inputs <= now:
            return Kind.INPUT_GRAD
        if forward <= now:
            would_delay = self.done_inputs == 0 and now + self.times.forward > inputs
            if not (self.rules.waits_for_first and would_delay):
                return Kind.FORWARD
            forward = inf
        ahead = min(forward, inputs)
        if self.done_weights < self.done_inputs and ahead - now >= self._gap():
            return Kind.WEIGHT_GRAD
        return ahead if ahead < inf else None

    def do(self, kind: Kind, now: float) -> float:
        """Take ``kind`` down as the next action; when it ends."""
        self.order.append(kind)
        if kind is Kind.FORWARD:
            self.done_forwards += 1
            return now + self.times.forward
        if kind is Kind.INPUT_GRAD:
            self.done_inputs += 1
            return now + self.times.input_grad
        self.done_weights += 1
        return now + self.times.weight_grad

    def _next_forward(self) -> float:
        """When the next forward can start; never, while there is no room for it."""
        whole, rest = self.done_forwards - self.done_inputs, self.done_inputs - self.done_weights
        if whole + rest * self.memory.weight_share + 1 > self.memory.limit + 1e-9:
            return inf
        if self.rules.surplus is not None and whole >= 2 * (self.stages - self.index) + self.rules.surplus:
            return inf
        return self.forwards[self.done_forwards] if self.done_forwards < len(self.forwards) else inf

    def _next_input(self) -> float:
        return self.inputs[self.done_inputs] if self.done_inputs < len(self.inputs) else inf

    def _gap(self) -> float:
        """The least gap that a weight gradient is put into."""
        is_tail = self.done_forwards == self.minibatches
        return (self.rules.tail_gap if is_tail else self.rules.steady_gap) * self.times.weight_grad
