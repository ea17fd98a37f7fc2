"""Event simulator: the time a schedule takes, from the same Actions that the runtime executes.

Every stage has its times, every tensor that goes to another rank takes ``hop``; sends do not hold the sender up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from worker.errors import ScheduleError
from worker.schedule import Action, Kind, Times, peak_in_flight
from worker.schedule.walk import Hop, Span, walk


@dataclass(frozen=True)
class RankReport:
    """One rank over the schedule.

    ``span`` is its time from first start to last end, ``busy`` the time it computes in it, ``idle`` the rest.
    ``peak_in_flight`` is in minibatches: with several chunks per rank each counts its share.
    """

    stages: tuple[int, ...]
    span: float
    busy: float
    idle: float
    peak_in_flight: float


@dataclass(frozen=True)
class Simulation:
    """What a schedule takes, in the unit of its times.

    ``makespan`` is the wall time from the first start to the last end; ``cost`` the longest span of a rank, what a step
    takes where steps follow each other without a wait; ``bubble_rate`` the share of ``cost`` that the busiest rank does
    not compute: (cost - m (F + I + W)) / cost where all stages are equal (Qi et al. 2024).
    """

    makespan: float
    cost: float
    bubble_rate: float
    ranks: list[RankReport]
    spans: list[list[Span]]


def simulate(ranks: Sequence[Sequence[Action]], times: Times | Sequence[Times], hop: Hop = 0.0) -> Simulation:
    """Walk ``ranks`` with times.

    Args:
        times: the same for every rank, or one for each. The stages of a rank share its times evenly. Or one for each
            virtual stage, where there are more of them than ranks.
        hop: seconds a tensor needs to another rank; one for all cuts or one for each.
    Raises:
        ScheduleError: if the schedule deadlocks, or ``times`` are not as many as said.
    """
    durations = _durations(ranks, times)
    spans = walk(ranks, lambda action: durations[action.stage][action.kind], hop)
    reports = [_report(actions, each) for actions, each in zip(ranks, spans, strict=True)]
    cost = max((report.span for report in reports), default=0.0)
    busiest = max((report.busy for report in reports), default=0.0)
    makespan = max((span.end for each in spans for span in each), default=0.0)
    return Simulation(makespan, cost, (cost - busiest) / cost if cost else 0.0, reports, spans)


def _durations(ranks: Sequence[Sequence[Action]], times: Times | Sequence[Times]) -> dict[int, dict[Kind, float]]:
    """The time of each kind of action in each stage."""
    held = [sorted({action.stage for action in actions}) for actions in ranks]
    stages = sum(map(len, held))
    if isinstance(times, Times):
        times = [times] * len(ranks)
    if len(times) == stages and stages != len(ranks):
        return {stage: _by_kind(times[stage], 1) for each in held for stage in each}
    if len(times) != len(ranks):
        raise ScheduleError(f"there are times for {len(times)} stages; the schedule has {len(ranks)}")
    return {stage: _by_kind(of_rank, len(each)) for of_rank, each in zip(times, held, strict=True) for stage in each}


def _by_kind(times: Times, share: int) -> dict[Kind, float]:
    return {
        Kind.FORWARD: times.forward / share,
        Kind.BACKWARD: (times.input_grad + times.weight_grad) / share,
        Kind.INPUT_GRAD: times.input_grad / share,
        Kind.WEIGHT_GRAD: times.weight_grad / share,
        Kind.UPDATE: times.update / share,
    }


def _report(actions: Sequence[Action], spans: Sequence[Span]) -> RankReport:
    stages = tuple(sorted({action.stage for action in actions}))
    span = spans[-1].end - spans[0].start if spans else 0.0
    busy = sum(each.end - each.start for each in spans)
    peak = peak_in_flight(actions)
    return RankReport(stages, span, busy, max(0.0, span - busy), peak if len(stages) < 2 else peak / len(stages))
