"""The time of a solution with real communication: the event simulator run over its schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from worker.errors import ScheduleError
from worker.planner.costs import Costs
from worker.planner.scheme import Scheme, actions
from worker.planner.solve import Placed
from worker.schedule import Kind, Times
from worker.schedule.walk import Span, walk
from worker.spec.profile import Profile

EFFORT = 60_000
"""Most actions walked for one solution, about 0.2 s; beyond it the bottleneck alone tells the time."""

STEPS = 4
"""Steps simulated of a schedule with flushes; the first, into an empty pipeline, does not count."""


@dataclass(frozen=True)
class Timing:
    """What a solution takes.

    ``step_seconds`` is one update's share of a long run; ``idle`` the share of it that each stage does not compute;
    ``spans`` a stretch of the timeline; empty where it was too long to simulate. ``times`` are those of the stages.
    """

    step_seconds: float
    idle: tuple[float, ...]
    times: tuple[Times, ...]
    spans: tuple[tuple[Span, ...], ...] = ()

    @property
    def is_simulated(self) -> bool:
        """Whether the simulator was run; else the slowest stage or link tells the time."""
        return bool(self.spans)


def _times(profile: Profile, costs: Costs, stage: Placed) -> Times:
    """Seconds of a stage's actions on its own devices."""
    seat = costs.seat(stage.device, stage.replicas)
    speed = seat.speed
    layers = profile.layers[stage.start : stage.end]
    again = costs.recompute_seconds(stage.end, stage.cost.recomputed)
    return Times(
        forward=(sum(layer.forward for layer in layers) + profile.action_seconds) / speed,
        input_grad=(sum(layer.input_grad for layer in layers) + again + profile.action_seconds) / speed,
        weight_grad=sum(layer.weight_grad for layer in layers) / speed,
        update=costs.update(stage.start, stage.end, seat),
    )


def timing(profile: Profile, costs: Costs, stages: Sequence[Placed], bottleneck: float) -> Timing:
    """How long a step takes, and where it waits.

    Args:
        bottleneck: seconds per minibatch of the slowest stage or link; the time where the schedule is too long.
    """
    scheme, ranks = costs.scheme, sum(stage.replicas for stage in stages)
    times = tuple(_times(profile, costs, stage) for stage in stages)
    steps = STEPS if scheme.flushes else -(-(4 * ranks + 8) // scheme.minibatches)
    if steps * scheme.minibatches * len(stages) * 3 > EFFORT:
        step = max(bottleneck, sum(each.cost.seconds for each in stages) if scheme.schedule == "none" else 0.0)
        if scheme.flushes and scheme.schedule != "none":
            # Filling and draining costs one pass through as many stages as there are devices.
            passes = sum(each.cost.seconds for each in stages) / scheme.chunks
            step = bottleneck * (scheme.minibatches - 1) + passes
        elif scheme.minibatches > 1:
            step *= scheme.minibatches
        return Timing(step, _idle(scheme, stages, step), times)
    made = actions(scheme, [stage.replicas for stage in stages], steps, times)
    hops = [costs.hop(stage.start, stage.device) for stage in stages[1:]]
    spans = walk(made, lambda action: _duration(times[action.stage], action.kind), hops)
    step = _period(scheme, spans)
    # The walk lets tensors overlap on a link, and its window may be a lucky one; in the long run nothing is faster.
    step = max(step, _links(costs, stages) * scheme.minibatches, bottleneck * scheme.minibatches)
    return Timing(step, _idle(scheme, stages, step), times, tuple(map(tuple, spans)))


def _duration(times: Times, kind: Kind) -> float:
    if kind is Kind.FORWARD:
        return times.forward
    if kind is Kind.BACKWARD:
        return times.input_grad + times.weight_grad
    if kind is Kind.UPDATE:
        return times.update
    return times.input_grad if kind is Kind.INPUT_GRAD else times.weight_grad


def _period(scheme: Scheme, spans: Sequence[Sequence[Span]]) -> float:
    """Seconds from one update to the next in the steady state, seen from the first rank, where each minibatch ends."""
    own = spans[0]
    ends = [span.end for span in own if span.action.kind is Kind.UPDATE and span.action.stage == own[0].action.stage]
    if not ends:
        raise ScheduleError("the first rank makes no update")
    if scheme.flushes:
        return (ends[-1] - ends[0]) / (len(ends) - 1)
    backwards = [span for span in own if span.action.kind in (Kind.BACKWARD, Kind.WEIGHT_GRAD)]
    # Neither while the pipeline fills nor while it drains.
    first, last = backwards[len(backwards) // 3], backwards[(3 * len(backwards)) // 4]
    minibatches = last.action.minibatch - first.action.minibatch
    if minibatches < 1:
        first, last, minibatches = backwards[0], backwards[-1], max(1, backwards[-1].action.minibatch)
    return (last.end - first.end) / minibatches * scheme.minibatches


def _links(costs: Costs, stages: Sequence[Placed]) -> float:
    """Seconds per minibatch of the busiest link; with several chunks a device it carries as many cuts."""
    devices = costs.fleet.devices // costs.scheme.chunks
    busy: dict[frozenset[int], float] = {}
    for before, stage in pairwise(stages):
        seconds = costs.transfer(stage.start, stage.device, min(before.replicas, stage.replicas))
        ends = frozenset(costs.scheme.home(each.device, devices) for each in (before, stage))
        busy[ends] = busy.get(ends, 0.0) + seconds
    return max(busy.values(), default=0.0)


def _idle(scheme: Scheme, stages: Sequence[Placed], step: float) -> tuple[float, ...]:
    devices = len(stages) // scheme.chunks
    homes = [scheme.home(index, devices) for index in range(len(stages))]
    paces = [0.0] * devices
    for home, stage in zip(homes, stages, strict=True):
        paces[home] += stage.pace
    busy = [paces[home] * scheme.minibatches for home in homes]
    return tuple(max(0.0, 1 - each / step) if step else 0.0 for each in busy)
