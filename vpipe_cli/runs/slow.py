"""Which ranks are slow: those that hold up the others, and by what factor."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean, median_low

from worker.spec.job import Plan

SLOW = 1.3
"""From this factor on a rank is called slow. Stages that a planner has balanced differ by less."""


def factors(busy: Mapping[int, float], plan: Plan) -> dict[int, float]:
    """Of the slow ranks, how many times as long as the others they take.

    Where the planner predicted times, each rank is measured against its own: a stage may be meant to take longer, and
    all of them may be slower than predicted. Else the pace of the stages is compared, which is that of the pipeline.

    Args:
        busy: seconds per minibatch of each rank that has done a step.
    """
    expected = {rank: _expected(rank, plan) for rank in busy}
    known = {rank: seconds / expected[rank] for rank, seconds in busy.items() if expected[rank] > 0}
    found: dict[int, float] = {}
    for rank, own in known.items():
        others = [each for other, each in known.items() if other != rank]
        if others and (usual := median_low(others)) > 0 and own / usual >= SLOW:
            found[rank] = own / usual
    return found


def _expected(rank: int, plan: Plan) -> float:
    stages = plan.stages_of(rank)
    if plan.predicted is not None:
        return mean(plan.predicted.stage_seconds[stage] for stage in stages)  # a minibatch passes each by itself
    return float(len(plan.ranks_of(stages[0])))
