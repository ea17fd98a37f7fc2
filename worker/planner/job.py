"""A job's pipeline settings as a planning problem, and its plan from a profile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import inf

from worker.errors import UsageError
from worker.planner.choose import Chosen, choose
from worker.planner.costs import Fleet
from worker.planner.scheme import Scheme
from worker.planner.solve import Freedom
from worker.schedule.table import SCHEDULES
from worker.spec.cluster import ClusterSpec, PipelineSpec
from worker.spec.job import Plan, Predicted, StageTimes
from worker.spec.pipeline import CHUNKED, REPLICATED, SYNC_MODES
from worker.spec.planner import PlannerSpec, size
from worker.spec.profile import LinkProfile, Profile

MINIBATCHES_PER_STEP = 8
DEPTHS = 4
"""Depths tried beyond a schedule's own, evenly spread."""
CHUNKS = 2
"""Stages a device where it holds several and their number is not given."""


def plan_job(spec: ClusterSpec, ranks: int, profile: Profile) -> Plan:
    """The plan of a job from measurements; where all is given, its prediction alone.

    Raises:
        UsageError: the profile does not fit, or OutOfMemory where nothing fits ``planner.memory``.
    """
    pipeline = spec.pipeline
    fleet = fleet_of(spec.planner, limits_of(spec.planner.memory), ranks, profile)
    freedom = freedom_of(pipeline, ranks, is_free=False)
    schemes = list(schemes_of(pipeline, ranks, False, freedom))
    chosen = choose(profile, fleet, schemes, freedom, ratio_of(pipeline, ranks, freedom))
    stages, given = len(chosen.stages), pipeline.recompute_ratio
    ratios = (
        [float(each) for each in given] if isinstance(given, list) else [0.0 if given == "auto" else given] * stages
    )
    is_given = pipeline.partition != "auto"
    return Plan(
        partition=chosen.partition,
        recompute_ratio=chosen.recompute_ratio if given == "auto" else ratios,
        reason="given in cluster.yml" if is_given else f"auto: from measured layers; {why(profile, chosen)}",
        replicas=chosen.replicas,
        chunks=chosen.chunks,
        folds=chosen.scheme.folds,
        predicted=predicted(chosen),
        times=_times(chosen) if SCHEDULES[pipeline.schedule].is_searched else None,
    )


def _times(chosen: Chosen) -> list[StageTimes]:
    """What the order of a searched schedule follows from: with the times of its prediction the run has that order."""
    return [
        StageTimes(forward=t.forward, input_grad=t.input_grad, weight_grad=t.weight_grad) for t in chosen.timing.times
    ]


def predicted(chosen: Chosen) -> Predicted:
    """What a plan is expected to do."""
    return Predicted(
        step_seconds=chosen.step_seconds,
        lower_bound_seconds=chosen.lower_bound,
        stage_seconds=[stage.cost.seconds for stage in chosen.stages],
        memory_bytes=[round(stage.cost.memory) for stage in chosen.stages],
    )


def why(profile: Profile, chosen: Chosen) -> str:
    """One line on what holds the plan up."""
    if chosen.chunks > 1:
        loads = chosen.loads
        device, mean = loads.index(max(loads)), sum(loads) / len(loads)
        above = max(loads) / mean - 1 if mean else 0.0
        own = (s for s in range(len(chosen.stages)) if chosen.scheme.home(s, len(loads)) == device)
        stages = ", ".join(map(str, own))
        return (
            f"device {device} (stages {stages}) holds it up: {_ms(max(loads))} a minibatch, {above:.1%} above the mean"
        )
    slowest = chosen.stages[chosen.slowest]
    span = f"layers {slowest.start}-{slowest.end - 1}" if slowest.end - slowest.start > 1 else f"layer {slowest.start}"
    if chosen.bottleneck > slowest.pace * (1 + 1e-9):
        return (
            f"a link between stages holds it up, {_ms(chosen.bottleneck)} a minibatch; stages need {_ms(slowest.pace)}"
        )
    mean = sum(stage.pace for stage in chosen.stages) / len(chosen.stages)
    reason = "the layers leave no evener cut"
    if slowest.end - slowest.start == 1:
        reason = f"{profile.layers[slowest.start].name} alone, which cannot be cut"
    elif slowest.cost.recomputed:
        reason = f"memory makes it recompute {slowest.cost.recomputed} of its {slowest.end - slowest.start} layers"
    above = slowest.pace / mean - 1 if mean else 0.0
    pace = f"{_ms(slowest.pace)} a minibatch, {above:.1%} above the mean"
    return f"stage {chosen.slowest} ({span}) holds it up: {pace}" + (f": {reason}" if above > 0.001 else "")


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.4g} ms"


def limits_of(memory: str | int | Sequence[str | int] | None) -> list[float]:
    """Bytes of each device, or of all: ``16GiB``, ``8GiB,16GiB``, or a list; without a limit, one that is infinite."""
    if memory is None:
        return [inf]
    if isinstance(memory, str):
        return [float(size(each)) for each in memory.split(",")]
    return [float(size(memory))] if isinstance(memory, int) else [float(size(each)) for each in memory]


def fleet_of(
    planner: PlannerSpec,
    limits: Sequence[float],
    devices: int,
    profile: Profile,
    links: Sequence[LinkProfile] | None = None,
) -> Fleet:
    """The devices, a share of their memory left free; speeds and links as measured where they are not given."""
    speeds = planner.speeds or profile.speeds
    return Fleet.of(devices, limits, profile.links if links is None else links, speeds, planner.reserve)


def is_planned(pipeline: PipelineSpec) -> bool:
    """Whether measured layers can tell the plan."""
    most = max(pipeline.replicas) if isinstance(pipeline.replicas, list) else pipeline.replicas
    return pipeline.schedule not in CHUNKED or most == 1


def freedom_of(pipeline: PipelineSpec, devices: int, is_free: bool) -> Freedom:
    partition = None if pipeline.partition == "auto" else tuple(pipeline.partition)
    if not is_planned(pipeline):
        raise UsageError(
            f"schedule {pipeline.schedule} with replicas is not planned: "
            "neither stages nor ranks are on a device alone",
            "give its partition by hand, or leave out pipeline.replicas",
        )
    if pipeline.schedule in CHUNKED:
        return Freedom(partition=partition)
    if is_free:
        return Freedom(
            stages=pipeline.stages if pipeline.stages != devices else None, is_straight=False, partition=partition
        )
    given = pipeline.replicas
    if isinstance(given, list):
        return Freedom(replicas=tuple(given), is_straight=max(given) == 1, partition=partition)
    stages = pipeline.stages or max(1, devices // given)
    if stages * given != devices:
        raise UsageError(f"{stages} stages of {given} ranks do not make up {devices} devices")
    return Freedom(replicas=(given,) * stages, is_straight=given == 1, partition=partition)


def ratio_of(pipeline: PipelineSpec, devices: int, freedom: Freedom) -> tuple[float, ...] | None:
    """The given recompute ratio of a stage that begins at each device."""
    given = pipeline.recompute_ratio
    if given == "auto":
        return None
    if not isinstance(given, list):
        return (float(given),) * devices
    if pipeline.schedule in CHUNKED:
        return tuple(map(float, given))
    if freedom.replicas is None or len(given) != len(freedom.replicas):
        raise UsageError(f"recompute_ratio has {len(given)} entries, but the number of stages is another or free")
    return tuple(float(ratio) for ratio, count in zip(given, freedom.replicas, strict=True) for _ in range(count))


def deeper(schemes: Sequence[Scheme], devices: int, freedom: Freedom) -> Iterator[Scheme]:
    """The same schedules, least in flight first: their own depth, and up to one more minibatch for each cut.

    That many hide the way to the next stage and back where it takes up to half a minibatch's time; beyond it nothing is
    gained. 1F1B with one rank a stage only, for no other schedule has a depth of its own to add to.
    """
    for scheme in schemes:
        yield scheme
        is_fixed = scheme.in_flight is not None or scheme.schedule != "1f1b" or not freedom.is_straight
        most = 2 * devices - 1
        steps = () if is_fixed else {devices + (devices - 1) * part // DEPTHS for part in range(1, DEPTHS + 1)}
        yield from (replace(scheme, in_flight=depth) for depth in sorted(steps) if devices < depth <= most)


def schemes_of(pipeline: PipelineSpec, devices: int, every: bool, freedom: Freedom) -> Iterator[Scheme]:
    """The schedule asked for; or every one of the same sync_mode that fits."""
    mode = pipeline.sync_mode
    names = [name for name, modes in SYNC_MODES.items() if mode in modes] if every else [pipeline.schedule]
    flush = pipeline.minibatches_per_step or max(MINIBATCHES_PER_STEP, devices)
    for name in names:
        if name in CHUNKED and not freedom.is_straight:
            continue
        if name in CHUNKED:
            chunks = (pipeline.stages or 0) // devices if pipeline.schedule == name else 0
            depth = None if pipeline.in_flight == "auto" or every else pipeline.in_flight
            yield Scheme(name, mode, flush, depth, chunks or CHUNKS)
            continue
        if not freedom.is_straight and name not in REPLICATED:
            continue
        many = mode == "bsp" or name in ("2bw", "accumulate")
        depth = None if pipeline.in_flight == "auto" or every else pipeline.in_flight
        yield Scheme(name, mode, flush if many else 1, depth)
