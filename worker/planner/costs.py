"""What a contiguous run of layers costs as one stage: seconds per minibatch, bytes, and how much must be recomputed.

Seconds: layers' forward and backward, what is recomputed, a share of the updates, the all-reduce of replicas. Bytes of
a rank: ``base_bytes``; parameters in as many versions as the schedule holds; gradients (a second set where they are
added up over minibatches); optimizer state; for every minibatch in flight the activations of the layers that are kept
and the inputs of those that are recomputed; the activations of one recomputed layer, or the workspace of one layer,
whichever is more; buffers of messages that wait to be taken or to arrive.

What is recomputed is the last layers of a stage, as many as it takes and no more: that is what the runtime can do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import inf

from worker.errors import UsageError
from worker.planner.scheme import Scheme
from worker.spec.profile import LinkProfile, Profile

POSTED = 3
"""Receives of each direction that a rank has posted ahead: ``worker.communication.Inbox`` looks 4 actions ahead."""


@dataclass(frozen=True)
class Fleet:
    """The devices in rank order: speed relative to the one profiled, bytes, and the links between neighbours.

    Plans leave a share of ``reserve`` of each memory free.
    """

    speeds: tuple[float, ...]
    memories: tuple[float, ...]
    links: tuple[LinkProfile, ...] = ()
    reserve: float = 0.0

    @classmethod
    def of(
        cls,
        devices: int,
        memory: float | Sequence[float] = inf,
        links: Sequence[LinkProfile] = (),
        speeds: Sequence[float] = (),
        reserve: float = 0.0,
    ) -> Fleet:
        """So many devices. One memory, link or speed stands for all.

        Raises:
            UsageError: there are neither one nor as many as there are devices, or links between them.
        """
        memories = tuple(memory) if isinstance(memory, Sequence) else (memory,)
        return cls(
            _each("speeds", tuple(speeds) or (1.0,), devices, "devices"),
            _each("memory", memories, devices, "devices"),
            _each("links", tuple(links), devices - 1, "neighbouring pairs of devices") if links else (),
            reserve,
        )

    def room(self, device: int, replicas: int) -> float:
        """Bytes that each of so many devices from ``device`` on may use."""
        return min(self.memories[device : device + replicas]) * (1.0 - self.reserve)

    @property
    def devices(self) -> int:
        """How many there are."""
        return len(self.speeds)


def _each(what: str, values: tuple, count: int, unit: str) -> tuple:  # type: ignore[type-arg]
    if len(values) not in (1, count):
        raise UsageError(f"{what}: {len(values)} values for {count} {unit}", "give one for all, or one for each")
    return values * count if len(values) == 1 else values


@dataclass(frozen=True)
class StageCost:
    """One stage: seconds a rank needs for one of its minibatches, layers recomputed, bytes."""

    seconds: float
    recomputed: int
    memory: float


@dataclass(frozen=True)
class Parts:
    """Bytes of a stage: whatever is in flight, for each minibatch in flight, and for a moment in a backward."""

    fixed: float
    kept: float
    again: float


@dataclass(frozen=True)
class Seat:
    """What is the same for all stages that begin at one device and have so many replicas."""

    device: int
    replicas: int
    room: float
    held: int
    versions: int
    gradients: int
    arriving: int
    leaving: int
    speed: float
    updates: float
    """Updates per minibatch of a rank."""
    copying: float
    """Seconds per byte of weights, where an update copies them."""
    reducing: float
    """Seconds per byte of gradients, where replicas add them up."""
    ratio: float | None
    paces: dict[int, float] = field(default_factory=dict, compare=False, repr=False)
    """Paces worked out so far, by the layers; shared by all seats on which a stage costs the same."""


class Costs:
    """The cost of every possible stage of a profile on a fleet under a schedule.

    Args:
        ratio: share of recomputed layers for a stage that begins at each device; None: as few as memory allows.
    """

    def __init__(self, profile: Profile, fleet: Fleet, scheme: Scheme, ratio: Sequence[float] | None = None) -> None:
        layers = profile.layers
        self.fleet, self.scheme = fleet, scheme
        self.layers = len(layers)
        self.work = _sums(layer.seconds for layer in layers)
        """Seconds of forward and backward before each layer, and of all."""
        self.outputs = [0, *(layer.output_bytes for layer in layers[:-1]), 0]
        """Bytes that cross the cut before each layer, and behind the last."""
        self._recompute = _sums(layer.recompute for layer in layers)
        self._update = _sums(layer.update for layer in layers)
        self._kept = _sums(layer.activation_bytes for layer in layers)
        self._inputs = _sums(self.outputs[:-1])
        self._parameters = _sums(layer.parameter_bytes for layer in layers)
        self._gradients = _sums(layer.gradient_bytes for layer in layers)
        self._state = _sums(layer.optimizer_bytes for layer in layers)
        self._activations = [layer.activation_bytes for layer in layers]
        self._workspaces = [layer.workspace_bytes for layer in layers]
        self._base = profile.base_bytes
        self._overhead = 2 * profile.action_seconds
        self._copy_rate = profile.copy_rate
        self._ratio = ratio
        self._least = _sums(
            min(each.activation_bytes, taken) for each, taken in zip(layers, self.outputs, strict=False)
        )
        self._seats: dict[tuple[int, int], Seat] = {}
        self._paces: dict[Seat, dict[int, float]] = {}
        self._free = [0.0] * (self.layers + 1)
        self._transfers: dict[tuple[LinkProfile, int], list[float]] = {}

    def seat(self, device: int, replicas: int) -> Seat:
        """The facts about stages on ``replicas`` devices from ``device`` on."""
        if (device, replicas) not in self._seats:
            seat = self._seat(device, replicas)
            paces = self._paces.setdefault(replace(seat, device=0), seat.paces)
            self._seats[device, replicas] = replace(seat, paces=paces)
        return self._seats[device, replicas]

    def _seat(self, device: int, replicas: int) -> Seat:
        scheme, fleet = self.scheme, self.fleet
        held = scheme.held(device, fleet.devices, replicas)
        versions = scheme.versions(held)
        # A send is waited for once as many newer minibatches have been sent as the first stage admits.
        sent = -(-scheme.held(0, fleet.devices, 1) // replicas)
        is_alone = replicas == fleet.devices
        return Seat(
            device=device,
            replicas=replicas,
            room=fleet.room(device, replicas),
            held=held,
            versions=versions,
            gradients=2 if scheme.minibatches > replicas else 1,
            arriving=0 if is_alone else POSTED + sent,
            leaving=0 if is_alone else POSTED + max(sent, held),
            speed=min(fleet.speeds[device : device + replicas]),
            updates=scheme.updates(replicas),
            copying=1 / self._copy_rate if self._copy_rate and versions > 1 else 0.0,
            reducing=self._reducing(device, replicas),
            ratio=None if self._ratio is None else self._ratio[device],
        )

    def _reducing(self, device: int, replicas: int) -> float:
        """Reduce-scatter and all-gather: each of r ranks sends and receives 2 (r - 1) / r of the gradients."""
        links = self.fleet.links[device : device + replicas - 1]
        share = 2 * (replicas - 1) / replicas
        return max(
            (share / min(each.forward, each.backward) * (2 if each.is_shared else 1) for each in links), default=0.0
        )

    def stage(self, start: int, end: int, seat: Seat) -> StageCost | None:
        """Layers ``start`` to ``end`` as a stage on ``seat``; None where memory does not suffice."""
        recomputed, memory = self._first_fitting(start, end, seat)
        return None if recomputed < 0 else StageCost(self.seconds(start, end, recomputed, seat), recomputed, memory)

    def pace(self, start: int, end: int, seat: Seat) -> float:
        """Seconds per minibatch that leaves such a stage; infinite where memory does not suffice."""
        if seat.room == inf and seat.ratio is None:
            return self.seconds(start, end, 0, seat) / seat.replicas
        key = start * (self.layers + 1) + end
        pace = seat.paces.get(key)
        if pace is None:
            recomputed, _ = self._first_fitting(start, end, seat)
            pace = inf if recomputed < 0 else self.seconds(start, end, recomputed, seat) / seat.replicas
            seat.paces[key] = pace
        return pace

    def _first_fitting(self, start: int, end: int, seat: Seat) -> tuple[int, float]:
        """The fewest recomputed layers with which the stage fits, and its bytes; -1 where none do."""
        if seat.ratio is None:
            kept = self._fixed(start, end, seat) + seat.held * (self._kept[end] - self._kept[start])
            memory = kept + max(self._workspaces[start:end])
            if memory <= seat.room:
                return 0, memory
            if self.is_hopeless(start, end, seat):
                return -1, inf
        return next(((count, size) for count, size in self._memories(start, end, seat) if size <= seat.room), (-1, inf))

    def memory(self, start: int, end: int, recomputed: int, seat: Seat) -> float:
        """Bytes of a rank of this stage at its peak, with so many layers recomputed."""
        parts = self.parts(start, end, recomputed, seat)
        return float(parts.fixed + seat.held * parts.kept + parts.again)

    def parts(self, start: int, end: int, recomputed: int, seat: Seat) -> Parts:
        """What the memory of this stage is made of, with so many layers recomputed."""
        first = end - recomputed
        kept = self._kept[first] - self._kept[start] + self._inputs[end] - self._inputs[first]
        again = max([*self._workspaces[start:end], *self._activations[first:end]])
        return Parts(self._fixed(start, end, seat), kept, again)

    def is_hopeless(self, start: int, end: int, seat: Seat) -> bool:
        """Whether memory refuses this stage and with it every one that has more layers."""
        least = self._fixed(start, end, seat) - seat.arriving * self.outputs[start] - seat.leaving * self.outputs[end]
        return bool(least + seat.held * (self._least[end] - self._least[start]) > seat.room)

    def least_memory(self, start: int, end: int, seat: Seat) -> float:
        """The fewest bytes a rank of this stage can do with, at any share of recomputation allowed."""
        return min(memory for _, memory in self._memories(start, end, seat))

    def seconds(self, start: int, end: int, recomputed: int, seat: Seat) -> float:
        """Seconds a rank of this stage is busy with one of its minibatches, its share of updates included."""
        work = self.work[end] - self.work[start] + self._overhead
        if recomputed:
            work += self._recompute[end] - self._recompute[end - recomputed]
        return float(work / seat.speed + seat.updates * self.update(start, end, seat))

    def recompute_seconds(self, end: int, recomputed: int) -> float:
        """What recomputing the last layers before ``end`` takes on the profiled device."""
        return float(self._recompute[end] - self._recompute[end - recomputed])

    def update(self, start: int, end: int, seat: Seat) -> float:
        """Seconds of one update of a stage: optimizer, a copy of the weights where they are held, all-reduce."""
        seconds = (self._update[end] - self._update[start]) / seat.speed
        if seat.copying:
            seconds += (self._parameters[end] - self._parameters[start]) * seat.copying
        if seat.reducing:
            seconds += (self._gradients[end] - self._gradients[start]) * seat.reducing
        return float(seconds)

    def links(self, device: int, replicas: int) -> tuple[list[float], list[float]]:
        """Seconds per minibatch that the links of such a stage are busy, by cut: those before it, those behind it."""
        return self._busy(device, replicas), self._busy(device + replicas, replicas)

    def transfer(self, cut: int, device: int, replicas: int) -> float:
        """Seconds per minibatch that the link before ``device`` is busy with the cut before layer ``cut``."""
        return self._busy(device, replicas)[cut]

    def _busy(self, device: int, replicas: int) -> list[float]:
        if not self.fleet.links or not 0 < device < self.fleet.devices:
            return self._free
        link = self.fleet.links[device - 1]
        if (link, replicas) not in self._transfers:
            self._transfers[link, replicas] = [_both_ways(link, size) / replicas for size in self.outputs]
        return self._transfers[link, replicas]

    def hop(self, cut: int, device: int) -> float:
        """Seconds until a tensor has crossed the link before ``device``, at the cut before layer ``cut``."""
        if cut in (0, self.layers) or not self.fleet.links:
            return 0.0
        link = self.fleet.links[device - 1]
        return link.latency + self.outputs[cut] / min(link.forward, link.backward)

    def _memories(self, start: int, end: int, seat: Seat) -> Iterator[tuple[int, float]]:
        """Numbers of layers that may be recomputed, least first, each with the bytes of a rank at its peak."""
        fixed, held = self._fixed(start, end, seat), seat.held
        again = max(self._workspaces[start:end])
        chosen = None if seat.ratio is None else int((end - start) * seat.ratio + 1e-9)
        kept = self._kept[end] - self._kept[start]
        if not chosen:
            yield 0, fixed + held * kept + again
        for first in range(end - 1, start - 1, -1):
            again = max(again, self._activations[first])
            kept += self._inputs[first + 1] - self._inputs[first] - self._activations[first]
            if chosen is None or end - first == chosen:
                yield end - first, fixed + held * kept + again
            if chosen is not None and end - first >= chosen:
                return

    def _fixed(self, start: int, end: int, seat: Seat) -> float:
        """Bytes that do not depend on what is recomputed."""
        return float(
            self._base
            + (self._parameters[end] - self._parameters[start]) * seat.versions
            + (self._gradients[end] - self._gradients[start]) * seat.gradients
            + self._state[end]
            - self._state[start]
            + seat.arriving * self.outputs[start]
            + seat.leaving * self.outputs[end]
        )


def _both_ways(link: LinkProfile, size: int) -> float:
    """Seconds for a tensor there and its gradient back."""
    there, back = size / link.forward, size / link.backward
    return there + back if link.is_shared else max(there, back)


def _sums(values: Iterable[float]) -> list:  # type: ignore[type-arg]
    return [0, *accumulate(values)]
