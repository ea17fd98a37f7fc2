"""From a profile and a fleet to the best plan found, with its prediction, its bound, and why it is what it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import floor, inf

from worker.errors import ScheduleError, UsageError
from worker.planner.bounds import step_bound
from worker.planner.chunked import Chunked
from worker.planner.costs import Costs, Fleet, StageCost
from worker.planner.scheme import Scheme
from worker.planner.solve import Freedom, Placed, Solver
from worker.planner.timing import Timing, timing
from worker.spec.profile import Profile

SWEEP = 50
"""Most limits tried, under flushes, between the least bottleneck and the one at which no sum could make up for it."""

TIMED = 8
"""Most candidates of a schedule that are simulated: those best before."""

TOLERANCE = 1e-9
"""How far the least bottleneck found may be above the least there is, as a share of it."""


class OutOfMemory(UsageError):
    """No plan fits. ``least`` is the smallest memory that would do, in bytes, or as a multiple of what there is."""

    def __init__(self, message: str, hint: str, least: float) -> None:
        super().__init__(message, hint)
        self.least = least


@dataclass(frozen=True)
class Chosen:
    """A plan with what it is expected to do. Seconds of a step; memory in bytes for each stage."""

    scheme: Scheme
    stages: tuple[Placed, ...]
    bottleneck: float
    lower_bound: float
    timing: Timing
    candidates: int = 1

    @property
    def chunks(self) -> int:
        """Stages on each device."""
        return self.scheme.chunks

    @property
    def loads(self) -> list[float]:
        """Seconds per minibatch of each stage's devices; of each device where several stages share it."""
        devices = len(self.stages) // self.chunks
        loads = [0.0] * devices
        for index, stage in enumerate(self.stages):
            loads[self.scheme.home(index, devices)] += stage.pace
        return loads

    @property
    def partition(self) -> list[int]:
        """Layers per stage."""
        return [stage.end - stage.start for stage in self.stages]

    @property
    def replicas(self) -> list[int]:
        """Ranks per stage."""
        return [stage.replicas for stage in self.stages]

    @property
    def recompute_ratio(self) -> list[float]:
        """Share of each stage's layers, from its end, that are recomputed."""
        return [_ratio(stage.cost.recomputed, stage.end - stage.start) for stage in self.stages]

    @property
    def step_seconds(self) -> float:
        """Predicted seconds of a step."""
        return self.timing.step_seconds

    @property
    def slowest(self) -> int:
        """The stage that sets the pace."""
        return max(range(len(self.stages)), key=lambda index: self.stages[index].pace)

    @property
    def gap(self) -> float:
        """How far the step is above its lower bound, as a share of it."""
        return self.timing.step_seconds / self.lower_bound - 1 if self.lower_bound else 0.0


def _ratio(recomputed: int, layers: int) -> float:
    """Rounded up a little, as the runtime rounds the number of layers down."""
    return min(1.0, -(-10_000 * recomputed // layers) / 10_000)


def choose(
    profile: Profile,
    fleet: Fleet,
    schemes: Sequence[Scheme],
    freedom: Freedom,
    ratio: Sequence[float] | None = None,
) -> Chosen:
    """The plan with the fastest simulated step per minibatch, of the exact solver's candidates for every scheme.

    Args:
        ratio: recompute ratio of a stage that begins at each device; None: the planner's choice.
    Raises:
        UsageError: there are fewer layers than stages.
        OutOfMemory: no plan fits the devices' memory, under any of the schemes.
        ScheduleError: none of the schemes can run.
    """
    if all(scheme.chunks == 1 for scheme in schemes):
        _check(profile, fleet, freedom)
    found: list[Chosen] = []
    refused: list[ScheduleError] = []
    for scheme in schemes:
        try:
            if scheme.chunks > 1:
                chunked = Chunked(profile, fleet, scheme, ratio)
                best = chunked.best(freedom.partition)
                found += [_of_chunks(chunked, *best)] if chunked.shortage(best[0]) <= 1 else []
            else:
                found += _of_scheme(profile, Costs(profile, fleet, scheme, ratio), freedom)
        except ScheduleError as error:
            refused.append(error)
    if found:
        return replace(min(found, key=_rank), candidates=len(found))
    if len(refused) == len(schemes):
        raise refused[0]
    raise _out_of_memory(profile, fleet, schemes, freedom, ratio)


def evaluate(
    profile: Profile,
    fleet: Fleet,
    scheme: Scheme,
    partition: Sequence[int],
    replicas: Sequence[int],
    recompute_ratio: Sequence[float],
) -> Chosen:
    """A plan given whole, as ``choose`` would judge it; its memory is whatever it is.

    Raises:
        UsageError: it does not fit the layers or the devices.
        ScheduleError: the schedule cannot run on it.
    """
    if scheme.chunks > 1:
        chunked = Chunked(profile, fleet, scheme, recompute_ratio)
        return _of_chunks(chunked, *chunked.given(partition))
    _check(profile, fleet, Freedom(replicas=tuple(replicas), partition=tuple(partition)))
    costs, stages, start, device = Costs(profile, fleet, scheme), [], 0, 0
    for layers, count, ratio in zip(partition, replicas, recompute_ratio, strict=True):
        seat, end, recomputed = costs.seat(device, count), start + layers, floor(layers * ratio + 1e-9)
        memory = costs.memory(start, end, recomputed, seat)
        cost = StageCost(costs.seconds(start, end, recomputed, seat), recomputed, memory)
        stages.append(Placed(start, end, device, count, cost))
        start, device = end, device + count
    solver = Solver(costs, Freedom(replicas=tuple(replicas), is_straight=max(replicas) == 1))
    worth = solver.worth(stages)
    bound = step_bound(solver, profile, costs, max(replicas) == 1)
    return Chosen(scheme, tuple(stages), worth, bound, timing(profile, costs, stages, worth))


def _rank(chosen: Chosen) -> tuple[float, float, float]:
    """Less is better: the step, to a millionth; then what is recomputed; then how uneven it is."""
    per_minibatch = chosen.timing.step_seconds / chosen.scheme.minibatches
    return float(f"{per_minibatch:.6g}"), sum(chosen.recompute_ratio), sum(s.pace**2 for s in chosen.stages)


def _check(profile: Profile, fleet: Fleet, freedom: Freedom) -> None:
    layers = len(profile.layers)
    replicas, partition = freedom.replicas, freedom.partition
    stages = len(replicas or partition or ()) or freedom.stages or (fleet.devices if freedom.is_straight else 1)
    if partition and sum(partition) != layers:
        raise UsageError(f"the partition has {sum(partition)} layers; the profile has {layers}")
    if stages > layers:
        raise UsageError(
            f"{stages} stages are more than the {layers} layers of the profile",
            "use fewer stages or devices, or let stages have replicas",
        )
    if replicas and sum(replicas) != fleet.devices:
        raise UsageError(f"replicas {list(replicas)} need {sum(replicas)} devices; there are {fleet.devices}")


def _of_scheme(profile: Profile, costs: Costs, freedom: Freedom) -> Iterator[Chosen]:
    """The exact solutions of one scheme, timed. None where nothing fits."""
    solver = Solver(costs, freedom)
    fastest = solver.bottleneck()
    if fastest is None:
        return
    candidates = _candidates(solver, costs, fastest)
    is_open = not freedom.is_straight and freedom.replicas is None and freedom.stages is None and not freedom.partition
    straight = Solver(costs, Freedom()) if is_open and costs.fleet.devices <= costs.layers else None
    if straight and (one_each := straight.bottleneck()):
        # Replicas come in bursts, which the bottleneck does not see: one rank a stage may do better.
        candidates += _candidates(straight, costs, one_each)
    if costs.scheme.flushes:
        candidates.sort(key=lambda stages: objective(costs, stages, solver.worth(stages)))
    candidates = [*candidates[:TIMED], *(_uniform(costs) if is_open and costs.scheme.flushes else ())]
    bound = step_bound(solver, profile, costs, freedom.is_straight)
    # No plan's slowest stage is faster than this one's, what memory makes it recompute and all-reduces included.
    bound = max(bound, solver.worth(fastest) * costs.scheme.minibatches * (1 - TOLERANCE))
    for stages in candidates:
        worth = solver.worth(stages)
        yield Chosen(costs.scheme, tuple(stages), worth, bound, timing(profile, costs, stages, worth))


def _of_chunks(chunked: Chunked, stages: Sequence[Placed], time: Timing) -> Chosen:
    """Several stages on each device, with their bound."""
    costs = chunked.costs
    bound = step_bound(Solver(costs, Freedom()), chunked.profile, costs, is_straight=True)
    return Chosen(costs.scheme, tuple(stages), max(chunked.loads(stages)), bound, time)


def _candidates(solver: Solver, costs: Costs, fastest: list[Placed]) -> list[list[Placed]]:
    """Even stages with the least bottleneck, that of ``fastest``; under flushes also some that fill faster."""
    least = solver.worth(fastest)
    found = [solver.evened(least) or fastest]
    if not costs.scheme.flushes or not solver.is_small(least):
        return found
    shortest = solver.least_sum(least)
    if shortest is None:
        return found
    found.append(shortest)
    rest = costs.scheme.minibatches - 1
    best = objective(costs, shortest, least)
    # What a larger bottleneck may cost at most, if all stages together took no longer than one device alone.
    limit = (best - costs.work[-1] / max(costs.fleet.speeds)) / rest if rest else inf
    for times in range(1, SWEEP):
        # From the widest limit inwards: each time the least sum below what the last one took.
        stages = solver.least_sum(limit) if limit > least and solver.is_small(limit, times) else None
        if stages is None or objective(costs, stages, least) >= best:
            break
        worth = solver.worth(stages)
        found.append(stages)
        best, limit = min(best, objective(costs, stages, worth)), worth * (1 - 1e-8)
    return found


def _uniform(costs: Costs) -> Iterator[list[Placed]]:
    """The fastest stages that all have equally many replicas, for each number that divides the devices but one.

    Under flushes few stages have little to fill and drain, data parallelism nothing; the bottleneck does not see that.
    """
    devices = costs.fleet.devices
    for replicas in range(2, devices + 1):
        if devices % replicas == 0 and devices // replicas <= costs.layers:
            freedom = Freedom(replicas=(replicas,) * (devices // replicas), is_straight=False)
            if found := Solver(costs, freedom).bottleneck():
                yield found


def objective(costs: Costs, stages: Sequence[Placed], worth: float) -> float:
    """A step with a flush, before it is simulated: one minibatch through all stages, the others at the slowest pace."""
    passes = sum(stage.cost.seconds + 2 * costs.hop(stage.start, stage.device) for stage in stages)
    return passes + (costs.scheme.minibatches - 1) * worth


def _out_of_memory(
    profile: Profile, fleet: Fleet, schemes: Sequence[Scheme], freedom: Freedom, ratio: Sequence[float] | None
) -> OutOfMemory:
    share = min(_least_memory(profile, fleet, scheme, freedom, ratio) for scheme in schemes)
    memories = set(fleet.memories)
    fixed = "" if ratio is None else " with the given recompute_ratio"
    if len(memories) == 1:
        least = share * fleet.memories[0]
        message = f"no plan fits {human(fleet.memories[0])} a device{fixed}; the least that would do is {human(least)}"
    else:
        least = share
        message = f"no plan fits the devices' memory{fixed}; {share:.3g} times as much on each would do"
    return OutOfMemory(message, "give more memory or devices, or a smaller data.minibatch_size", least)


def _least_memory(
    profile: Profile, fleet: Fleet, scheme: Scheme, freedom: Freedom, ratio: Sequence[float] | None
) -> float:
    """The least memory, as a multiple of what there is, at which a plan of this scheme is found."""
    if scheme.chunks == 1:
        return Solver(Costs(profile, fleet, scheme, ratio), freedom).least_memory()
    chunked = Chunked(profile, fleet, scheme, ratio)
    return chunked.shortage(chunked.best(freedom.partition)[0])


def human(count: float) -> str:
    """Bytes as GiB or MiB, exact enough to type back: rounded up in the third decimal."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{-(-count * 1000 // size) / 1000:.6g} {unit}"
    return f"{count:.0f} B"
