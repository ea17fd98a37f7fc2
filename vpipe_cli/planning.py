"""What `vpipe plan` plans: a job, or devices and a profile that names no model; and the plans it is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path

from pydantic import ValidationError

from vpipe_cli import config, machines, profiles
from worker.errors import ScheduleError, UsageError
from worker.planner import pipedream
from worker.planner.choose import Chosen, choose, evaluate
from worker.planner.costs import Fleet
from worker.planner.job import deeper, fleet_of, freedom_of, limits_of, ratio_of, schemes_of, why
from worker.planner.scheme import Scheme
from worker.planner.solve import Freedom
from worker.spec.cluster import ClusterSpec, PipelineSpec
from worker.spec.planner import PlannerSpec, rate
from worker.spec.profile import LinkProfile, Profile, model_digest

PIPEDREAM_BANDWIDTH = 1e9
DEADLINE = 900.0
"""Seconds to measure a job for, where it was not profiled."""


@dataclass(frozen=True)
class Request:
    """The options of `vpipe plan`; None where one is not given."""

    path: Path
    overrides: Sequence[str] = ()
    profile: Path | None = None
    memory: str | None = None
    bandwidth: str | None = None
    cost_model: str = "vpipe"
    every_schedule: bool = False
    free_replicas: bool = False
    free_depth: bool = False


@dataclass(frozen=True)
class Problem:
    """What is to be planned, read and checked."""

    profile: Profile
    fleet: Fleet
    pipeline: PipelineSpec
    samples: int | None
    schemes: tuple[Scheme, ...]
    freedom: Freedom
    ratio: tuple[float, ...] | None
    limit: float
    """Bytes of a device as given, the reserve among them."""


@dataclass(frozen=True)
class Planned:
    """A plan under a name, and whether it keeps to the devices' memory."""

    name: str
    plan: Chosen
    fits: bool


@dataclass(frozen=True)
class Report:
    """All that `vpipe plan` found out."""

    problem: Problem
    cost_model: str
    plan: Chosen
    step_seconds: float
    lower_bound: float
    notes: list[str]
    others: list[Planned] = field(default_factory=list)


def problem(request: Request) -> Problem:
    """Read cluster.yml and the profile.

    Raises:
        UsageError: either is wrong, or the profile is of another model.
    """
    profile = profiles.load(request.profile) if request.profile else None
    if profile is not None and (profile.model is None or not request.path.exists()):
        hosts, pipeline, planner = _unnamed(request)
        samples, is_free = None, request.free_replicas or "replicas" not in pipeline.model_fields_set
        slots = machines.slots(hosts)
    else:
        spec = config.load(request.path, request.overrides)
        slots, pipeline, planner = machines.slots(spec.machines), spec.pipeline, spec.planner
        profile = _of(spec, slots, profile, request.profile)
        samples, is_free = spec.data.minibatch_size, request.free_replicas
    links = _links(profile, request.bandwidth)
    limits = limits_of(request.memory or planner.memory)
    fleet = fleet_of(planner, limits, len(slots), profile, links)
    freedom = freedom_of(pipeline, len(slots), is_free)
    schemes = tuple(schemes_of(pipeline, len(slots), request.every_schedule, freedom))
    if request.free_depth:
        schemes = tuple(deeper(schemes, len(slots), freedom))
    return Problem(
        profile=profile,
        fleet=fleet,
        pipeline=pipeline,
        samples=samples,
        schemes=schemes,
        freedom=freedom,
        ratio=ratio_of(pipeline, len(slots), freedom),
        limit=max(limits),
    )


def plan(request: Request, compare: bool = False) -> Report:
    """The best plan, or the one given where nothing is left to choose; with others beside it to ``compare``.

    Raises:
        UsageError: the request makes no sense; OutOfMemory where nothing fits.
    """
    asked = problem(request)
    bandwidth = rate(request.bandwidth) if request.bandwidth else PIPEDREAM_BANDWIDTH
    if request.cost_model == "pipedream":
        return _pipedream(asked, bandwidth)
    chosen = choose(asked.profile, asked.fleet, asked.schemes, asked.freedom, asked.ratio)
    others = list(_others(asked, chosen, bandwidth)) if compare else []
    notes = [why(asked.profile, chosen), *_notes(asked, chosen, request)]
    return Report(asked, "vpipe", chosen, chosen.step_seconds, chosen.lower_bound, notes, others)


def _unnamed(request: Request) -> tuple[list[str], PipelineSpec, PlannerSpec]:
    """Machines, pipeline and planner of a file, or of the command line alone, whose model does not count."""
    values = config.values(request.path if request.path.exists() else None, request.overrides)
    hosts = values.get("machines")
    if not isinstance(hosts, list) or not hosts:
        raise UsageError("no machines are named to plan for", "name a cluster.yml, or add machines=[cpu*4]")
    try:
        pipeline = PipelineSpec.model_validate(values.get("pipeline") or {})
        return [str(host) for host in hosts], pipeline, PlannerSpec.model_validate(values.get("planner") or {})
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        raise UsageError(f"{'.'.join(map(str, found['loc']))}: {found['msg']}") from None


def _of(spec: ClusterSpec, slots: Sequence[machines.Slot], profile: Profile | None, path: Path | None) -> Profile:
    """The profile of a job: the one given, or the one measured here."""
    if profile is None:
        return profiles.of_job(spec, slots, DEADLINE)
    if profile.model != model_digest(spec):
        raise UsageError(
            f"{path} is a profile of another model than that of cluster.yml, or of other shapes or arithmetic",
            "measure this one with `vpipe profile`",
        )
    return profile


def _links(profile: Profile, bandwidth: str | None) -> Sequence[LinkProfile]:
    if bandwidth is None:
        return profile.links
    given = rate(bandwidth)
    return [LinkProfile(forward=given, backward=given, is_shared=True)]


def _pipedream(asked: Problem, bandwidth: float) -> Report:
    """PipeDream's plan by its own cost model; timed by it, its memory by ours."""
    model = pipedream.CostModel(asked.profile, bandwidth)
    straight = asked.freedom.is_straight
    stages = pipedream.solve(model, asked.fleet.devices, straight)
    worth = model.bottleneck(stages)
    chosen = _judged(asked, asked.schemes[0], stages, 0.0)
    bound = model.stage(0, model.layers, 1) / asked.fleet.devices
    notes = ["times are those of PipeDream's cost model: its bottleneck, in seconds per minibatch"]
    return Report(asked, "pipedream", chosen, worth, bound, notes)


def _judged(asked: Problem, scheme: Scheme, stages: Sequence[pipedream.Stage], ratio: float) -> Chosen:
    partition = [stage.end - stage.start for stage in stages]
    replicas = [stage.replicas for stage in stages]
    return evaluate(asked.profile, asked.fleet, scheme, partition, replicas, [ratio] * len(stages))


def _others(asked: Problem, chosen: Chosen, bandwidth: float) -> Iterator[Planned]:
    """An even split, PipeDream's plan, GPipe's, and the one chosen."""
    stages, layers = len(chosen.stages), len(asked.profile.layers)
    even = [layers * (index + 1) // stages - layers * index // stages for index in range(stages)]
    asp = Scheme("1f1b", "asp", 1)
    gpipe = Scheme("gpipe", "bsp", chosen.scheme.minibatches if chosen.scheme.flushes else max(8, asked.fleet.devices))
    model = pipedream.CostModel(asked.profile, bandwidth)

    def given(scheme: Scheme, partition: list[int], ratio: float) -> Chosen:
        return evaluate(asked.profile, asked.fleet, scheme, partition, chosen.replicas, [ratio] * stages)

    yield _fitting(asked, "even split", given(chosen.scheme, even, 0.0))
    try:
        theirs = pipedream.solve(model, asked.fleet.devices, asked.freedom.is_straight)
        yield _fitting(asked, "PipeDream", _judged(asked, asp, theirs, 0.0))
        unlimited = replace(asked.fleet, memories=(inf,) * asked.fleet.devices)
        is_straight = max(chosen.replicas) == 1
        same = Freedom(replicas=None if is_straight else tuple(chosen.replicas), is_straight=is_straight)
        balanced = choose(asked.profile, unlimited, [gpipe], same, (1.0,) * asked.fleet.devices)
        yield _fitting(asked, "GPipe", balanced)
    except ScheduleError:
        pass
    yield _fitting(asked, "this plan", chosen)


def _fitting(asked: Problem, name: str, plan: Chosen) -> Planned:
    devices = asked.fleet.devices
    rooms = [asked.fleet.room(plan.scheme.home(stage.device, devices), stage.replicas) for stage in plan.stages]
    fits = all(stage.cost.memory <= room for stage, room in zip(plan.stages, rooms, strict=True))
    return Planned(name, plan, fits)


def _notes(asked: Problem, chosen: Chosen, request: Request) -> Iterator[str]:
    """What the user should know besides."""
    if asked.fleet.devices > 1 and not asked.fleet.links:
        yield "no link was measured: what crosses between stages counts nothing; give --bandwidth, or profile the links"
    if asked.profile.source == "pipedream" and asked.limit < inf:
        yield "a profile of PipeDream's knows no optimizer state and no gradients: memory is what it tells of the rest"
    if not chosen.timing.is_simulated:
        yield "too long to simulate: the step is worked out from the slowest stage"
    deeper = _deeper(asked, chosen)
    if deeper is not None:
        gain = chosen.step_seconds / deeper.step_seconds - 1
        depth = deeper.scheme.in_flight
        yield f"in_flight={depth} would hide more of the links: {gain:.0%} faster, at more memory and delay"


def _deeper(asked: Problem, chosen: Chosen) -> Chosen | None:
    """The same stages with one more minibatch in flight for each cut, where that fits and helps by 3 % or more."""
    scheme, stages = chosen.scheme, len(chosen.stages)
    if scheme.schedule != "1f1b" or scheme.in_flight is not None or max(chosen.replicas) > 1 or stages < 2:
        return None
    wider = replace(scheme, in_flight=2 * stages - 1)
    other = evaluate(asked.profile, asked.fleet, wider, chosen.partition, chosen.replicas, chosen.recompute_ratio)
    is_better = other.step_seconds * 1.03 < chosen.step_seconds and chosen.timing.is_simulated
    return other if is_better and _fitting(asked, "", other).fits else None
