"""The exact solver: cuts a chain of layers into stages on devices in rank order, replicas and recomputation included.

State (i, n): layers from i on, on the last n devices. A stage of r replicas takes the first r of those and ends before
layer j; the state (j, n - r) is the rest. Because the devices left are known, so are the minibatches in flight, the
weight versions and with them the recomputation that memory asks for: all exact inside the recursion (PipeDream's,
Narayanan et al. 2019, run backwards).

``bottleneck`` finds the least time of the slowest stage or link, the pace of a pipeline without flushes, by bisection
over a limit: is there any plan in which nothing is above it? Which states can be begun within a limit needs one look
at the nearest rest in most cases, so a limit costs O(layers x devices), with free replicas O(layers x devices^2); the
worst case, where memory or links refuse most rests, is O(layers^2 x devices) and O(layers^2 x devices^2). Each limit
is tried on those states only that could stay below it with even perfect balance before and behind them, about
devices x (limit / bound - 1) / (mean layer) layers for each number of devices. ``least`` adds up over stages under a
limit: what filling and draining costs a pipeline with flushes, or how uneven a plan is. It looks at all rests within
the limit; so O(layers^2 x devices) where the limit is loose.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import inf

from worker.planner.costs import Costs, Seat, StageCost

FIRST_LIMITS = (1.0, 1.05, 1.2, 2.0, 8.0, inf)
"""Multiples of the lower bound that are tried as limits until one is met; bisection does the rest."""

MARGIN = 1e-3
"""How far above a limit a search still looks, so as to know what it refused."""

EXACT = 1e-9
"""Relative slack of comparisons: sums of floats differ in their last bits with the order of adding."""


@dataclass(frozen=True)
class Placed:
    """One stage of a solution: layers ``start`` to ``end``, on ``replicas`` devices from ``device`` on."""

    start: int
    end: int
    device: int
    replicas: int
    cost: StageCost

    @property
    def pace(self) -> float:
        """Seconds per minibatch that leaves the stage."""
        return self.cost.seconds / self.replicas


@dataclass(frozen=True)
class Freedom:
    """What a solution may choose.

    Args:
        replicas: of each stage, where given; else one each if ``is_straight``, any number if not.
        stages: how many, where given and replicas are free.
        partition: layers of each stage, where given.
    """

    replicas: tuple[int, ...] | None = None
    stages: int | None = None
    is_straight: bool = True
    partition: tuple[int, ...] | None = None


State = tuple[int, int]
"""Devices left, and stages left (0 where their number is free)."""

Option = tuple[int, State, int | None]
"""Replicas of a stage, the state behind it, and its number of layers where that is given."""

Choice = dict[tuple[State, int], tuple[int, int]]
"""For a state and the layer it begins at: the end of its first stage, and its replicas."""

Value = Callable[[float, int, int, Seat, float], float]
"""Value of the rest, start, end, seat and pace of a stage -> value of both together."""

EFFORT = 300_000
"""Most stages looked at where all plans within a limit are compared."""


class Solver:
    """Searches the stages of one ``Costs`` within one ``Freedom``."""

    def __init__(self, costs: Costs, freedom: Freedom) -> None:
        self._costs = costs
        self._freedom = freedom
        self._devices = costs.fleet.devices
        speeds = costs.fleet.speeds
        self._speed_behind = [sum(speeds[self._devices - n :]) for n in range(self._devices + 1)]
        """Speed of the last n devices together."""
        self._fastest = max(speeds)
        self._states = _states(freedom, self._devices)
        self._above = inf
        """The least time that the last search refused as above its limit: a limit between them changes nothing."""

    def lower_bound(self) -> float:
        """Seconds per minibatch that no plan can be below: all work on all devices, or the least divisible part of it.

        A layer is not cut; and where every stage has one device, the dearest layer on the fastest device is a stage.
        """
        work = self._costs.work
        largest = max(b - a for a, b in pairwise(work))
        most = 1 if self._freedom.is_straight else self._devices
        most = max(self._freedom.replicas) if self._freedom.replicas else most
        return float(max(work[-1] / self._speed_behind[-1], largest / (self._fastest * most)))

    def bottleneck(self) -> list[Placed] | None:
        """The stages whose slowest, or slowest link, is as fast as can be; None where nothing fits into memory."""
        low = self.lower_bound()
        for factor in FIRST_LIMITS:
            limit = low * factor * (1 + EXACT) if factor < inf else inf
            if found := self._any(limit):
                return self._bisected(low, found)
            low = low * factor if factor < inf else low
        return None

    def evened(self, worst: float) -> list[Placed] | None:
        """Of the plans with this bottleneck an even one: the least sum of squares, no stage larger than it need be.

        What needs more time than others, be it a layer by itself, must not make the rest uneven: so a limit as low as
        can be is looked for that all stages meet but those of one layer.
        """
        found = self._any(worst * (1 + EXACT))
        if found is None or not self._freedom.is_straight:
            return self._least(worst * (1 + EXACT), 2) if found is not None and self.is_small(worst) else found
        low, high = self._costs.work[-1] / self._speed_behind[-1] / 8, worst
        while high > low * 1.004:
            middle = (low + high) / 2
            if better := self._any(middle, worst * (1 + EXACT)):
                high, found = middle, better
            else:
                low = middle
        return self._least(high * (1 + EXACT), 2, worst * (1 + EXACT)) if self.is_small(high) else found

    def least_sum(self, limit: float) -> list[Placed] | None:
        """The stages with the least sum of seconds and hops, no stage or link slower than ``limit``; None if none is.

        It is what a minibatch needs to pass them all: the cost of filling and draining.
        """
        return self._least(limit * (1 + EXACT), 1)

    def is_small(self, limit: float, times: int = 1) -> bool:
        """Whether looking so many times at every plan within ``limit`` takes about a second at most."""
        first, last = self._windows(limit)
        wide = [max(0, high - low + 1) for low, high in zip(first, last, strict=True)]
        options = sum(len(rests) * wide[state[0]] for state, rests in self._states)
        mean = (self._costs.work[-1] or 1.0) / self._costs.layers
        return times * options * min(max(wide), 1 + limit * self._fastest / mean) < EFFORT

    def least_memory(self) -> float:
        """The least memory, as a multiple of what each device has, at which some plan fits: the search on bytes."""

        def worst(before: float, start: int, end: int, seat: Seat, pace: float) -> float:
            return max(before, self._costs.least_memory(start, end, seat) / seat.room)

        best, _ = self._search(inf, value=worst, with_time=False)
        return best[self._states[-1][0]].get(0, inf)

    def worth(self, stages: Sequence[Placed]) -> float:
        """The bottleneck of given stages: the slowest stage or link, in seconds per minibatch."""
        paces = []
        for each in stages:
            ahead, behind = self._costs.links(each.device, each.replicas)
            paces += [each.pace, ahead[each.start], behind[each.end]]
        return max(paces)

    def _bisected(self, low: float, found: list[Placed]) -> list[Placed]:
        high = self.worth(found)
        while high - low > 1e-10 * high:
            middle = (low + high) / 2
            if better := self._any(middle):
                found, high = better, min(middle, self.worth(better))
            else:
                low = max(middle, min(self._above, middle * (1 + MARGIN)))
        return found

    def _any(self, limit: float, single: float | None = None) -> list[Placed] | None:
        """Any stages of which none is above ``limit``, or above ``single`` if it has one layer."""
        _, choice = self._search(limit, single)
        return self._trace(choice)

    def _least(self, limit: float, power: int, single: float | None = None) -> list[Placed] | None:
        """The stages within the limits with the least sum of seconds and hops, or of squares of seconds."""

        def squares(before: float, start: int, end: int, seat: Seat, pace: float) -> float:
            return before + pace * pace * seat.replicas

        def passes(before: float, start: int, end: int, seat: Seat, pace: float) -> float:
            return before + pace * seat.replicas + 2 * self._costs.hop(start, seat.device)

        value = squares if power == 2 else passes
        _, choice = self._search(limit, single, value)
        return self._trace(choice)

    def _search(
        self, limit: float, single: float | None = None, value: Value | None = None, with_time: bool = True
    ) -> tuple[dict[State, dict[int, float]], Choice]:
        """For every state the starts that can be begun within the limits, with the least value; any where it is None.

        ``value(value of the rest, start, end, seat, pace)`` must not decrease. Without ``with_time`` memory and time
        refuse nothing.
        """
        costs, work, most = self._costs, self._costs.work, limit if single is None else single
        first, last = self._windows(limit * (1 + MARGIN))
        self._above = inf
        best: dict[State, dict[int, float]] = {(0, 0): {costs.layers: 0.0}}
        choice: Choice = {}
        for state, options in self._states:
            found: dict[int, float] = {}
            device = self._devices - state[0]
            for replicas, rest, exactly in options:
                before = best.get(rest)
                if not before:
                    continue
                seat, ends = costs.seat(device, replicas), sorted(before)
                reach = limit * replicas * self._fastest * (1 + EXACT)
                ahead, behind = costs.links(device, replicas)
                for start in range(min(last[state[0]], ends[-1] - 1), first[state[0]] - 1, -1):
                    if value is None and start in found:
                        continue
                    if ahead[start] > most:
                        self._above = min(self._above, ahead[start])
                        continue
                    base = work[start]
                    for index in range(bisect_right(ends, start), len(ends)):
                        end = ends[index]
                        bound = most if end == start + 1 else limit
                        if work[end] - base > reach and bound == limit:
                            self._above = min(self._above, (work[end] - base) / replicas / self._fastest)
                            break
                        if exactly is not None and end - start != exactly:
                            continue
                        if behind[end] > most:
                            self._above = min(self._above, behind[end])
                            continue
                        pace = costs.pace(start, end, seat) if with_time else 0.0
                        if pace == inf and costs.is_hopeless(start, end, seat):
                            break
                        if pace > bound or pace == inf:
                            self._above = min(self._above, pace)
                            continue
                        if value is None:
                            found[start], choice[state, start] = 0.0, (end, replicas)
                            break
                        worth = value(before[end], start, end, seat, pace)
                        if start not in found or worth < found[start]:
                            found[start], choice[state, start] = worth, (end, replicas)
            best[state] = found
        return best, choice

    def _windows(self, limit: float) -> tuple[list[int], list[int]]:
        """For n devices left: the first and the last layer at which their layers can begin, with perfect balance.

        A layer that is above the limit by itself takes a device; it counts as one device's worth, no more.
        """
        layers, devices = self._costs.layers, self._devices
        if limit == inf:
            return [0] * (devices + 1), [layers - 1] * devices + [0]
        work, most = self._costs.work, limit * self._fastest
        if self._freedom.is_straight:
            work = [0.0, *accumulate(min(b - a, most) for a, b in pairwise(work))]
        slack, total = limit * (1 + EXACT), self._speed_behind[-1]
        first = [bisect_left(work, work[-1] * (1 - EXACT) - slack * speed) for speed in self._speed_behind]
        last = [bisect_right(work, slack * (total - speed) * (1 + EXACT)) - 1 for speed in self._speed_behind]
        last[devices] = 0
        return first, last

    def _trace(self, choice: Choice) -> list[Placed] | None:
        state, start = self._states[-1][0], 0
        stages = []
        while start < self._costs.layers:
            if (state, start) not in choice:
                return None
            end, replicas = choice[state, start]
            seat = self._costs.seat(self._devices - state[0], replicas)
            cost = self._costs.stage(start, end, seat)
            assert cost is not None
            stages.append(Placed(start, end, seat.device, replicas, cost))
            state, start = (state[0] - replicas, state[1] - 1 if state[1] else 0), end
        return stages


def _states(freedom: Freedom, devices: int) -> list[tuple[State, list[Option]]]:
    """States from the last device backwards, each with what its first stage can be."""
    given, partition = freedom.replicas, freedom.partition
    if given is None and freedom.is_straight:
        given = (1,) * devices
    if given is not None:
        states: list[tuple[State, list[Option]]] = []
        left = 0
        for count, replicas in enumerate(reversed(given), 1):
            layers = partition[len(given) - count] if partition else None
            states.append(((left + replicas, count), [(replicas, (left, count - 1), layers)]))
            left += replicas
        return states
    stages = len(partition) if partition else freedom.stages
    if stages is None:
        return [((n, 0), [(r, (n - r, 0), None) for r in range(1, n + 1)]) for n in range(1, devices + 1)]
    found = []
    for s in range(1, stages + 1):
        layers = partition[stages - s] if partition else None
        for n in range(s, devices - (stages - s) + 1):
            options = [(r, (n - r, s - 1), layers) for r in range(1, n - s + 2) if (n - r > 0) == (s > 1)]
            found.append(((n, s), options))
    return found
