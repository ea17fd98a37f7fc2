"""zb-auto: a zero-bubble schedule searched for the times at hand under a memory limit.

Handcrafted orders and greedy ones under many rules are timed by the walk; the best is then improved by moving single
weight gradients to where they delay nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product
from math import inf

from worker.errors import ScheduleError
from worker.schedule.action import Action, Kind
from worker.schedule.generate import update
from worker.schedule.greedy import Memory, Rules, greedy
from worker.schedule.setting import Setting, Times
from worker.schedule.versions import peak_activations
from worker.schedule.walk import walk
from worker.schedule.zero_bubble import handcrafted, lag_of, zb_h1

Order = list[list[Action]]
Cost = tuple[float, float]
"""The longest time from first to last action of any stage, then the time of all: less is better."""

RULES = [Rules(*each) for each in product((0.0, 0.75), (0.0, 0.5), (False, True), (0, 1, None))]

EFFORT = 200_000
"""Actions walked while improving: half a second."""


def zb_auto(stage: int, setting: Setting) -> Iterator[Action]:
    """The best schedule found that holds at most ``in_flight`` minibatches' activations (default: stages).

    After the automatic schedule of Qi et al. 2024. All ranks find the same one, as it depends on the setting alone.
    Equally many replicas are so many pipelines side by side, each searched alone; where stages have more of them and
    fewer, whose minibatches meet is another matter with every step, and the order is that of ZB-H1.

    Raises:
        ScheduleError: where ``times`` are given, but not one per stage.
    """
    minibatches = setting.minibatches
    if len(set(setting.replicas or ())) > 1:
        yield from zb_h1(stage, setting)
        return
    orders = search(replace(setting, minibatches=range(len(minibatches)), replicas=None))
    yield from _numbered(stage, orders[stage], minibatches)
    yield from update(minibatches, stage)


@lru_cache(maxsize=8)
def search(setting: Setting) -> list[list[Kind]]:
    """For each stage the kinds of its actions in order; of each kind, minibatches go in order. No update."""
    times = setting.times or (Times(),) * setting.stages
    if len(times) != setting.stages:
        raise ScheduleError(f"zb-auto has times for {len(times)} stages of {setting.stages}")
    searcher = _Search(setting, times)
    found = min(searcher.candidates(), key=searcher.cost)
    best = min(found, searcher.improved(found), key=searcher.cost)
    return [[action.kind for action in actions] for actions in best]


class _Search:
    def __init__(self, setting: Setting, times: Sequence[Times]) -> None:
        self._setting = setting
        self._times = times
        self._limit = float(setting.in_flight or setting.stages)
        works = [each.forward + each.input_grad + each.weight_grad for each in times]
        self._unit = max(works) * len(setting.minibatches) or 1.0

    def candidates(self) -> Iterator[Order]:
        """Schedules within the memory limit, as good as they come."""
        setting, minibatches = self._setting, self._setting.minibatches
        for depth in sorted({int(self._limit), min(int(self._limit), 2 * setting.stages - 1)}):
            lags = [lag_of(stage, setting.stages, depth) for stage in range(setting.stages)]
            yield [list(handcrafted(stage, setting, depth, lag)) for stage, lag in enumerate(lags)]
        memory = Memory(self._limit, setting.weight_share)
        for rules in RULES:
            kinds = greedy(self._times, setting.hop, len(minibatches), memory, rules)
            yield [_numbered(stage, order, minibatches) for stage, order in enumerate(kinds)]

    def cost(self, ranks: Order) -> Cost:
        """What the walk takes, as multiples of the busiest stage's work, rounded so that equal is equal."""
        spans = [each for each in walk(ranks, self._duration, self._setting.hop) if each]
        longest = max((each[-1].end - each[0].start for each in spans), default=0.0)
        last = max((each[-1].end for each in spans), default=0.0)
        return round(longest / self._unit, 9), round(last / self._unit, 9)

    def improved(self, ranks: Order) -> Order:
        """``ranks`` with weight gradients moved by one place while that helps, within EFFORT.

        The last stage comes first, since the others wait for it. A move that costs nothing is made where it puts a
        weight gradient off, as that may open the way for another.
        """
        best, before, left = self.cost(ranks)[0], inf, EFFORT // max(1, sum(map(len, ranks)))
        while best < before:
            before = best
            for stage, position in _places(ranks):
                moved = _swapped(ranks[stage], position)
                if moved is None or not self._fits(moved):
                    continue
                if left == 0:
                    return ranks
                left -= 1
                tried = [*ranks[:stage], moved, *ranks[stage + 1 :]]
                cost = self.cost(tried)[0]
                if cost < best or (cost == best and moved[position].kind is Kind.WEIGHT_GRAD):
                    best, ranks = cost, tried
        return ranks

    def _duration(self, action: Action) -> float:
        times = self._times[action.stage]
        if action.kind is Kind.FORWARD:
            return times.forward
        return times.input_grad if action.kind is Kind.INPUT_GRAD else times.weight_grad

    def _fits(self, actions: Sequence[Action]) -> bool:
        return peak_activations(actions, self._setting.weight_share) <= self._limit + 1e-9


def _places(ranks: Order) -> list[tuple[int, int]]:
    """Stages and positions, from the end of the last stage to the beginning of the first."""
    return [(stage, at) for stage in reversed(range(len(ranks))) for at in reversed(range(1, len(ranks[stage])))]


def _swapped(actions: Sequence[Action], position: int) -> list[Action] | None:
    """A weight gradient at ``position`` or just before it in turn with the other; None where neither or both are."""
    first, second = actions[position - 1], actions[position]
    is_boundary = (first.kind is Kind.WEIGHT_GRAD) != (second.kind is Kind.WEIGHT_GRAD)
    if not is_boundary or (first.kind is Kind.INPUT_GRAD and first.minibatch == second.minibatch):
        return None
    return [*actions[: position - 1], second, first, *actions[position + 1 :]]


def _numbered(stage: int, kinds: Sequence[Kind], minibatches: range) -> list[Action]:
    """Kinds with their minibatches, which go in order within each kind."""
    following = {kind: iter(minibatches) for kind in set(kinds)}
    return [Action(stage, kind, next(following[kind])) for kind in kinds]
