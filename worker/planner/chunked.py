"""Plans for several stages on each device: interleaved 1F1B and ZB-V.

The exact solver knows what a device holds because each is left for good; here every device comes back. So this search
is not exact: it begins with the evenest cut into that many stages, then moves one cut by one layer at a time while that
makes the simulated step shorter. Memory is that of a device, all its stages together. Where it is short, layers are
recomputed that free most bytes for their time, each stage's from its end, for that is what the runtime can do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate, pairwise
from math import inf

from worker.errors import ScheduleError, UsageError
from worker.planner.costs import Costs, Fleet, StageCost
from worker.planner.scheme import Scheme, actions
from worker.planner.solve import Freedom, Placed, Solver
from worker.planner.timing import EFFORT, Timing, timing
from worker.schedule import Kind, Times
from worker.spec.profile import LinkProfile, Profile

BUDGET = 10 * EFFORT
"""Most actions simulated while cuts are moved: about two seconds."""

HERE = 1e18
"""Bytes per second from a device to itself."""

Cuts = tuple[int, ...]
"""Where each stage begins, and the end of the last."""


class Chunked:
    """The stages of one profile on one fleet under a scheme with several ``chunks`` a device.

    Args:
        ratio: share of recomputed layers of each stage; None: as little as memory allows.
    """

    def __init__(self, profile: Profile, fleet: Fleet, scheme: Scheme, ratio: Sequence[float] | None = None) -> None:
        self.stages = scheme.chunks * fleet.devices
        if self.stages > len(profile.layers):
            message = f"{self.stages} stages are more than the {len(profile.layers)} layers of the profile"
            raise ScheduleError(message, "use fewer devices, or another schedule")
        if ratio is not None and len(ratio) != self.stages:
            if len(set(ratio)) > 1:
                raise ScheduleError(f"recompute_ratio has {len(ratio)} entries for {self.stages} stages")
            ratio = [ratio[0]] * self.stages
        self.profile = profile
        self._fleet, self._scheme, self._ratio = fleet, scheme, ratio
        self._base = profile.base_bytes
        self.costs = Costs(profile.model_copy(update={"base_bytes": 0}), unfolded(fleet, scheme), scheme)

    def best(self, partition: Sequence[int] | None) -> tuple[list[Placed], Timing]:
        """The best stages found, or those of ``partition``, with their step; they may not fit."""
        return self.given(partition) if partition else self._improved(self._evenest())

    def given(self, partition: Sequence[int]) -> tuple[list[Placed], Timing]:
        """Stages of so many layers each. Raises UsageError where they do not add up."""
        if (len(partition), sum(partition)) != (self.stages, self.costs.layers):
            message = f"the partition has {len(partition)} stages of {sum(partition)} layers"
            raise UsageError(f"{message}; it needs {self.stages} of {self.costs.layers}")
        stages = self.place(tuple(accumulate(partition, initial=0)))
        return stages, self.timing(stages)

    def _evenest(self) -> Cuts:
        """The cuts with the least largest stage, its links counted, whatever the memory."""
        found = Solver(self.costs, Freedom()).bottleneck()
        assert found is not None
        return (*(stage.start for stage in found), self.costs.layers)

    def place(self, cuts: Cuts) -> list[Placed]:
        """The stages between ``cuts``. ``StageCost.memory`` is that of its device, whatever it is."""
        recomputed, memory = [0] * self.stages, [0.0] * self._fleet.devices
        for device in range(self._fleet.devices):
            own = self._own(device)
            if self._ratio is not None:
                for stage in own:
                    recomputed[stage] = int((cuts[stage + 1] - cuts[stage]) * self._ratio[stage] + 1e-9)
            else:
                self._recompute(device, own, cuts, recomputed)
            memory[device] = self.memory(device, own, cuts, recomputed)
        placed = []
        for stage, (start, end) in enumerate(pairwise(cuts)):
            seconds = self.costs.seconds(start, end, recomputed[stage], self.costs.seat(stage, 1))
            cost = StageCost(seconds, recomputed[stage], memory[self._home(stage)])
            placed.append(Placed(start, end, stage, 1, cost))
        return placed

    def shortage(self, stages: Sequence[Placed]) -> float:
        """What they need of the memory there is: above 1 they do not fit."""
        row = stages[: self._fleet.devices]
        return max(stage.cost.memory / self._fleet.room(stage.device, 1) for stage in row)

    def memory(self, device: int, own: Sequence[int], cuts: Cuts, recomputed: Sequence[int]) -> float:
        """Bytes of a device at its peak: what its stages hold, at the moment at which their minibatches take most."""
        parts = [self.costs.parts(cuts[s], cuts[s + 1], recomputed[s], self.costs.seat(s, 1)) for s in own]
        kept = max(sum(n * part.kept for n, part in zip(held, parts, strict=True)) for held in self._holdings[device])
        return self._base + sum(part.fixed for part in parts) + kept + max(part.again for part in parts)

    def loads(self, stages: Sequence[Placed]) -> list[float]:
        """Seconds per minibatch of each device."""
        return [sum(stages[each].cost.seconds for each in self._own(device)) for device in range(self._fleet.devices)]

    def timing(self, stages: Sequence[Placed]) -> Timing:
        """The simulated step."""
        return timing(self.profile, self.costs, stages, max(self.loads(stages)))

    def _home(self, stage: int) -> int:
        return self._scheme.home(stage, self._fleet.devices)

    def _own(self, device: int) -> list[int]:
        """The stages of a device."""
        return [stage for stage in range(self.stages) if self._home(stage) == device]

    def _improved(self, cuts: Cuts) -> tuple[list[Placed], Timing]:
        """The best stages found from ``cuts`` on: those that fit before those that do not, then the fastest."""
        stages = self.place(cuts)
        best, time = self._worth(stages)
        tries = BUDGET // (sum(map(len, time.spans)) or EFFORT)
        ahead = _neighbours(cuts)
        while tries and (near := next(ahead, None)):
            tries -= 1
            other = self.place(near)
            worth, its_time = self._worth(other)
            if worth < best:
                best, stages, time, ahead = worth, other, its_time, _neighbours(near)
        return stages, time

    def _worth(self, stages: Sequence[Placed]) -> tuple[tuple[float, float, float], Timing]:
        """Less is better: what memory lacks, then the step, then how uneven devices are."""
        time = self.timing(stages)
        lacks = max(1.0, self.shortage(stages))
        return (lacks, float(f"{time.step_seconds:.9g}"), sum(load**2 for load in self.loads(stages))), time

    def _recompute(self, device: int, own: Sequence[int], cuts: Cuts, recomputed: list[int]) -> None:
        """Recompute more layers of this device's stages until they fit, those first that free most for their time."""
        room = self._fleet.room(device, 1)
        while (needs := self.memory(device, own, cuts, recomputed)) > room:
            gains = []
            for stage in own:
                if recomputed[stage] == cuts[stage + 1] - cuts[stage]:
                    continue
                recomputed[stage] += 1
                freed = needs - self.memory(device, own, cuts, recomputed)
                took = self.costs.recompute_seconds(cuts[stage + 1] - recomputed[stage] + 1, 1)
                recomputed[stage] -= 1
                gains.append((freed / took if took else inf if freed > 0 else 0.0, stage))
            if not gains:
                return
            recomputed[max(gains)[1]] += 1

    @cached_property
    def _holdings(self) -> list[set[tuple[int, ...]]]:
        """For each device the minibatches that its stages hold at once, one set of numbers for each peak."""
        times = [Times()] * self.stages
        found = []
        for device, own in enumerate(actions(self._scheme, [1] * self.stages, 1, times)):
            held = dict.fromkeys(self._own(device), 0)
            peaks = set()
            for action in own:
                if action.kind is Kind.FORWARD:
                    held[action.stage] += 1
                elif action.kind in (Kind.BACKWARD, Kind.WEIGHT_GRAD):
                    peaks.add(tuple(held.values()))
                    held[action.stage] -= 1
            found.append(peaks)
        return found


def unfolded(fleet: Fleet, scheme: Scheme) -> Fleet:
    """A device for every stage, without limits of memory, and the link before each."""
    stages = scheme.chunks * fleet.devices
    homes = [scheme.home(stage, fleet.devices) for stage in range(stages)]
    return replace(
        fleet,
        speeds=tuple(fleet.speeds[home] for home in homes),
        memories=(inf,) * stages,
        links=tuple(_link(fleet.links, *pair) for pair in pairwise(homes)) if fleet.links else (),
    )


def _link(links: Sequence[LinkProfile], home: int, to: int) -> LinkProfile:
    """From one device to another; the way from the last to the first is the worst link."""
    if to == home:
        return LinkProfile(forward=HERE, backward=HERE)
    if to == home + 1:
        return links[home]
    if to == home - 1:
        return links[to].model_copy(update={"forward": links[to].backward, "backward": links[to].forward})
    return max(links, key=lambda link: (1 / min(link.forward, link.backward), link.latency))


def _neighbours(cuts: Cuts) -> Iterator[Cuts]:
    """The same cuts with one of them moved by one layer, or two in a row."""
    inner = range(1, len(cuts) - 1)
    for first in inner:
        for last in (first, first + 1):
            for step in (-1, 1):
                moved = [cut + step if at in inner and first <= at <= last else cut for at, cut in enumerate(cuts)]
                if all(a < b for a, b in pairwise(moved)):
                    yield tuple(moved)
