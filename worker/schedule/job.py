"""The Actions of a job's ranks: the schedule cluster.yml names, over all steps, on the plan's replicas or chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, cycle, islice, takewhile

from worker.schedule.action import Action, Kind
from worker.schedule.check import validate
from worker.schedule.setting import Setting
from worker.schedule.table import SCHEDULES, generator
from worker.schedule.versions import peak_activations
from worker.spec.cluster import ClusterSpec
from worker.spec.job import Plan


def minibatches_per_step(spec: ClusterSpec) -> int:
    """Minibatches whose mean loss an update follows: 1 where an update follows every backward."""
    return spec.pipeline.minibatches_per_step or 1


def rank_actions(spec: ClusterSpec, plan: Plan, rank: int) -> Iterator[Action]:
    """All Actions of one rank over the whole run. Raises ScheduleError where the schedule does not fit the job."""
    per_step = minibatches_per_step(spec)
    if spec.pipeline.sync_mode == "asp":
        return _over(spec, plan, rank, range(spec.run.steps * per_step))
    steps = (range(step * per_step, (step + 1) * per_step) for step in range(spec.run.steps))
    return chain.from_iterable(_over(spec, plan, rank, step) for step in steps)


def stage_versions(spec: ClusterSpec, plan: Plan, stage: int) -> Iterator[tuple[int, int]]:
    """Minibatch and weight version of every forward of a stage, on all its replicas, in the order of minibatches.

    A version is the number of updates in it.
    """
    replicas = [
        _forward_versions(action for action in rank_actions(spec, plan, rank) if action.stage == stage)
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

    Raises:
        ScheduleError: the schedule cannot run on this plan, or not without a deadlock.
    """
    per_step = minibatches_per_step(spec)
    if spec.pipeline.sync_mode == "asp":
        per_step *= -(-4 * plan.ranks // per_step)
    ranks = [list(_over(spec, plan, rank, range(per_step))) for rank in range(plan.ranks)]
    # Messages carry their minibatch, so their order on a wire proves nothing more.
    validate(ranks, stashes=SCHEDULES[spec.pipeline.schedule].stashes, by_order=False)


def _over(spec: ClusterSpec, plan: Plan, rank: int, minibatches: range) -> Iterator[Action]:
    """The Actions of one rank over ``minibatches``: one step under BSP, the whole stream under ASP.

    A replica has every R-th minibatch, and updates when all of its stage do: under ASP after every R minibatches.
    """
    pipeline, stage = spec.pipeline, plan.stages_of(rank)[0]
    ranks = plan.ranks_of(stage)
    replica, last = ranks.index(rank), minibatches.stop - 1
    own = range(minibatches.start + (replica - minibatches.start) % len(ranks), minibatches.stop, len(ranks))
    setting = Setting(
        stages=plan.stages // plan.chunks,
        minibatches=own,
        in_flight=None if pipeline.in_flight == "auto" else pipeline.in_flight,
        # PipeDream's formula, where the number of stages alone does not tell it.
        warmup=(plan.ranks - 1 - ranks.start) // len(ranks) if max(plan.replicas) > 1 else None,
        chunks=plan.chunks,
        per_update=minibatches_per_step(spec),
    )
    generate = generator(pipeline.schedule, pipeline.sync_mode, plan.chunks)
    end = -1
    for action in generate(stage, setting) if own else ():
        if action.kind is Kind.UPDATE:
            end = last if pipeline.sync_mode == "bsp" else min(last, action.minibatch - replica + len(ranks) - 1)
            action = replace(action, minibatch=end)
        yield action
    if end != last:  # a replica without a minibatch takes part in the update all the same
        yield Action(stage, Kind.UPDATE, last)


def _forward_versions(actions: Iterable[Action]) -> Iterator[tuple[int, int]]:
    updates = 0
    for action in actions:
        if action.kind is Kind.UPDATE:
            updates += 1
        elif action.kind is Kind.FORWARD:
            yield action.minibatch, updates if action.version is None else action.version
