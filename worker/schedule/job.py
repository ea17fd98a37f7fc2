"""The Actions of a job's ranks: the schedule cluster.yml names, over all steps, on the plan's replicas or chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, cycle, islice, takewhile
from math import gcd, lcm

from worker.schedule.action import Action, Kind
from worker.schedule.check import validate
from worker.schedule.setting import Setting, Times
from worker.schedule.table import SCHEDULES, generator
from worker.schedule.versions import peak_activations
from worker.spec.cluster import ClusterSpec, PipelineSpec
from worker.spec.job import Plan

MOST_BEGINNINGS = 64
"""Of replicas in turn that ``prove`` looks at; more only where their numbers have hardly a factor in common."""


def minibatches_per_step(spec: ClusterSpec) -> int:
    """Minibatches whose mean loss an update follows: 1 where an update follows every backward."""
    return spec.pipeline.minibatches_per_step or 1


def segments(spec: ClusterSpec, start: int = 0) -> Iterator[range]:
    """The steps from ``start`` to the end of the run, in pieces between which the pipeline stands empty.

    Under BSP each step is one. Under ASP they end where checkpoints and evaluations are due, in every run that has any:
    so a run that is resumed at a checkpoint does exactly what an undisturbed run does.
    """
    lengths = [1] if spec.pipeline.sync_mode == "bsp" else drain_periods(spec)
    while start < spec.run.steps:
        stop = min([spec.run.steps, *((start // length + 1) * length for length in lengths)])
        yield range(start, stop)
        start = stop


def drain_periods(spec: ClusterSpec) -> list[int]:
    """Every so many steps the pipeline must stand empty."""
    return [every for every in (spec.checkpoint.every_steps, spec.evaluate.every_steps) if every is not None]


def rank_actions(spec: ClusterSpec, plan: Plan, rank: int, start: int = 0) -> Iterator[Action]:
    """All Actions of one rank from step ``start`` to the end of the run.

    Raises ScheduleError where the schedule does not fit the job.
    """
    per_step = minibatches_per_step(spec)
    pieces = (range(steps.start * per_step, steps.stop * per_step) for steps in segments(spec, start))
    return chain.from_iterable(_over(spec, plan, rank, minibatches) for minibatches in pieces)


def stage_versions(spec: ClusterSpec, plan: Plan, stage: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """Minibatch and weight version of every forward of a stage, on all its replicas, in the order of minibatches.

    A version is the number of updates in it, those before step ``start`` left out where the schedule names none.
    """
    replicas = [
        _forward_versions(action for action in rank_actions(spec, plan, rank, start) if action.stage == stage)
        for rank in plan.ranks_of(stage)
    ]
    for replica in cycle(replicas):
        forward = next(replica, None)
        if forward is None:
            return
        yield forward


def delay(spec: ClusterSpec, plan: Plan, stage: int) -> int:
    """The most updates between the weights of a forward of ``stage`` and the update that its gradient goes into."""
    covered = minibatches_per_step(spec) if spec.pipeline.minibatches_per_step else plan.replicas[stage]
    depth = plan.ranks if spec.pipeline.in_flight == "auto" else max(plan.ranks, spec.pipeline.in_flight)
    steady = islice(stage_versions(spec, plan, stage), 4 * depth * covered)
    return max((minibatch // covered - version for minibatch, version in steady), default=0)


def window(spec: ClusterSpec, plan: Plan) -> int:
    """How many minibatches behind the newest one of a rank its oldest message can be on its way.

    Those that the first stage's replicas admit at once; and an update bears the number of the last minibatch of any of
    its replicas.
    """
    first_steps = (
        takewhile(lambda action: action.kind is not Kind.UPDATE, rank_actions(spec, plan, rank))
        for rank in plan.ranks_of(0)
    )
    entered = sum(int(peak_activations((a for a in actions if a.stage == 0), 0.0)) for actions in first_steps)
    return entered + max(plan.replicas) - 1


def prove(spec: ClusterSpec, plan: Plan) -> None:
    """Run ``validate`` on a step of the job, or on a stream long enough to be in its steady state.

    Where replicas take turns, steps differ in whose turn it is at their beginning; each such beginning is run.

    Raises:
        ScheduleError: the schedule cannot run on this plan, or not without a deadlock, or not within its bounds.
    """
    per_step, pipeline = minibatches_per_step(spec), spec.pipeline
    length = per_step if pipeline.sync_mode == "bsp" else per_step * -(-4 * plan.ranks // per_step)
    in_flight, versions = _bounds(pipeline)
    stashes = SCHEDULES[pipeline.schedule].stashes
    for first in _beginnings(spec, plan):
        ranks = [list(_over(spec, plan, rank, range(first, first + length))) for rank in range(plan.ranks)]
        # Messages carry their minibatch, so their order on a wire proves nothing more.
        validate(ranks, in_flight=in_flight, versions=versions, stashes=stashes, by_order=False)


def _beginnings(spec: ClusterSpec, plan: Plan) -> list[int]:
    """First minibatches of steps, or of streams behind a drain: one for every way in which replicas can stand then."""
    per_step = minibatches_per_step(spec)
    apart = [1] if spec.pipeline.sync_mode == "bsp" else drain_periods(spec)
    turns = lcm(*plan.replicas)
    stride = gcd(turns, *(steps * per_step for steps in apart))
    return list(range(0, turns, stride))[:MOST_BEGINNINGS] if apart else [0]


def _bounds(pipeline: PipelineSpec) -> tuple[int | None, int | None]:
    """What ``validate`` holds a schedule to: minibatches in flight where they are given, versions of the weights."""
    in_flight = None if pipeline.in_flight == "auto" or SCHEDULES[pipeline.schedule].is_chunked else pipeline.in_flight
    entry = SCHEDULES[pipeline.schedule]
    is_bounded = pipeline.sync_mode == "bsp" or entry.keeps or not entry.stashes
    return in_flight, entry.keeps + 1 if is_bounded else None


def _over(spec: ClusterSpec, plan: Plan, rank: int, minibatches: range) -> Iterator[Action]:
    """The Actions of one rank over ``minibatches``: one step under BSP, a stream from fill to drain under ASP.

    A replica has every R-th minibatch, and updates when all of its stage do: under ASP after every R minibatches,
    counted from the first.
    """
    pipeline, stages = spec.pipeline, plan.stages_of(rank)
    stage = stages[0]
    ranks = plan.ranks_of(stage)
    replica, first, last = ranks.index(rank), minibatches.start, minibatches.stop - 1
    own = range(first + (replica - first) % len(ranks), minibatches.stop, len(ranks))
    setting = Setting(
        stages=plan.row,
        minibatches=own,
        in_flight=None if pipeline.in_flight == "auto" else pipeline.in_flight,
        replicas=tuple(plan.replicas[: plan.row]) if max(plan.replicas) > 1 else None,
        chunks=plan.chunks,
        per_update=minibatches_per_step(spec),
        updates=first // minibatches_per_step(spec),
        times=tuple(Times(each.forward, each.input_grad, each.weight_grad) for each in plan.times or ()) or None,
    )
    generate = generator(pipeline.schedule, pipeline.sync_mode, plan.chunks)
    end = -1
    for action in generate(stage, setting) if own else ():
        if action.kind is Kind.UPDATE:
            group = (action.minibatch - first) // len(ranks)
            end = last if pipeline.sync_mode == "bsp" else min(last, first + (group + 1) * len(ranks) - 1)
            action = action if action.minibatch == end else action._replace(minibatch=end)
        yield action
    if end != last:  # a replica without a minibatch takes part in the update all the same
        yield from (Action(each, Kind.UPDATE, last) for each in stages)


def _forward_versions(actions: Iterable[Action]) -> Iterator[tuple[int, int]]:
    updates = 0
    for action in actions:
        if action.kind is Kind.UPDATE:
            updates += 1
        elif action.kind is Kind.FORWARD:
            yield action.minibatch, updates if action.version is None else action.version
