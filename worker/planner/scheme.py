"""What a schedule asks of a stage, as numbers: minibatches held, weight versions, how often weights are updated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from worker.schedule import Action, Setting, Times, num_warmup
from worker.schedule.table import SCHEDULES, generator
from worker.spec.job import home


@dataclass(frozen=True)
class Scheme:
    """A schedule as the planner sees it.

    Args:
        minibatches: between two updates; 1 where an update follows every backward.
        in_flight: minibatches admitted at once; None: the schedule's own depth.
        chunks: stages on each device, see ``home``.
    """

    schedule: str = "1f1b"
    sync_mode: str = "asp"
    minibatches: int = 1
    in_flight: int | None = None
    chunks: int = 1

    @property
    def folds(self) -> bool:
        """Whether every second row of stages goes back over the devices."""
        return self.schedule == "zb-v"

    @property
    def flushes(self) -> bool:
        """Whether the pipeline drains before each update."""
        return self.sync_mode == "bsp"

    @property
    def keeps_versions(self) -> bool:
        """Whether updates may find a graph in flight on the weights they change."""
        return not self.flushes and SCHEDULES[self.schedule].stashes

    def home(self, stage: int, devices: int) -> int:
        """The device of a stage where each holds several."""
        return home(stage, devices, self.folds)

    def held(self, before: int, ranks: int, replicas: int) -> int:
        """Most minibatches in flight on a rank of a stage of so many ``replicas``, with ``before`` ranks before it.

        With several chunks a device, every stage counts as a rank; how many all stages of one hold at once is in
        ``chunked``.
        """
        own = -(-self.minibatches // replicas) if self.flushes else ranks
        if self.chunks > 1:
            return min(own, ranks)
        if self.schedule == "none":
            return 1
        if self.schedule == "gpipe":
            return min(own, self.in_flight or own)
        if self.schedule in ("zb-h1", "zb-h2", "zb-auto"):
            rounds = 2 if self.schedule == "zb-h2" else 1
            return min(own, self.in_flight or rounds * ((ranks - 1) // replicas) + 1)
        if self.in_flight is not None and replicas == 1:
            held = num_warmup(before, ranks, self.in_flight) + 1
            return min(own, held) if self.flushes else held
        return min(own, (ranks - 1 - before) // replicas + 1)

    def versions(self, held: int) -> int:
        """Most versions of its weights that a rank holds."""
        if not self.keeps_versions:
            return 1
        return 2 if self.schedule == "2bw" else held

    def updates(self, replicas: int) -> float:
        """Updates per minibatch that a rank runs."""
        return 1.0 if self.minibatches == 1 else replicas / self.minibatches


def actions(scheme: Scheme, replicas: Sequence[int], steps: int, times: Sequence[Times]) -> list[list[Action]]:
    """The Actions of all ranks over ``steps`` updates, as ``schedule.job`` gives a job's.

    Raises:
        ScheduleError: the schedule cannot run on such stages.
    """
    m, devices = scheme.minibatches, sum(replicas) // scheme.chunks
    parts = [range(step * m, (step + 1) * m) for step in range(steps)] if scheme.flushes else [range(steps * m)]
    ranks = []
    for stage, count in enumerate(replicas[:devices] if scheme.chunks > 1 else replicas):
        for replica in range(count):
            own = (_rank(scheme, replicas, stage, part[replica::count], times) for part in parts)
            ranks.append(list(chain.from_iterable(own)))
    return ranks


def _rank(scheme: Scheme, replicas: Sequence[int], stage: int, own: range, times: Sequence[Times]) -> Iterator[Action]:
    if not own:
        return iter(())
    setting = Setting(
        stages=len(replicas) // scheme.chunks,
        minibatches=own,
        in_flight=scheme.in_flight,
        replicas=tuple(replicas) if max(replicas) > 1 else None,
        chunks=scheme.chunks,
        per_update=scheme.minibatches,
        times=tuple(times) if SCHEDULES[scheme.schedule].is_searched else None,
    )
    return generator(scheme.schedule, scheme.sync_mode, scheme.chunks)(stage, setting)
