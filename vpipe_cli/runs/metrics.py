"""The numbers of a run so far: metrics/rank-N.jsonl read as it grows, summed up as one Progress.

A file may go back: a run that was resumed from a checkpoint does some steps again. A step that is not behind the last
one read takes the place of what was read from there on, so that none counts twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from json import loads
from pathlib import Path

from vpipe_cli.runs import slow as slow_ranks
from worker import logfilter
from worker.spec.files import RunFiles
from worker.spec.job import Job, Placement
from worker.spec.records import StepMetrics

WINDOW = 50  # steps that "now" means: long enough to be steady, short enough to show a change


@dataclass(frozen=True)
class Timing:
    """What a rank has done lately, in seconds per minibatch and shares of the wall time."""

    forward: float
    backward: float
    update: float
    idle_share: float
    memory: int
    in_flight: int
    versions: int

    @property
    def busy(self) -> float:
        """Seconds in which it computes."""
        return self.forward + self.backward + self.update


@dataclass(frozen=True)
class RankProgress:
    """One rank: where it is, the stages and layers it runs, and its timing once it has done a step."""

    placement: Placement
    stages: list[int]
    layers: list[range]
    timing: Timing | None
    slow: float | None = None
    """How many times as long as the others it takes, where that is much."""


@dataclass(frozen=True)
class Progress:
    """A run at one moment. ``time`` (Unix) is the end of the last step; ``loss`` the mean over the last steps."""

    step: int
    steps: int
    time: float | None
    loss: float | None
    losses: list[tuple[float, float]]
    baseline_loss: float | None
    samples_per_second: float | None
    step_seconds: float | None
    eta: float | None
    ranks: list[RankProgress]


class Curve:
    """Loss over steps in at most ``limit`` points, whatever the number of steps: each the mean of as many steps."""

    def __init__(self, limit: int = 1024) -> None:
        self._limit = limit
        self._width = 1
        self._sums: list[tuple[float, float, int, int]] = []  # steps, losses, how many of both, and the last step

    def add(self, step: int, loss: float) -> None:
        """Add the next step, or one that was done again: what came behind it is dropped, to the nearest point."""
        while self._sums and self._sums[-1][3] >= step:
            self._sums.pop()
        if self._sums and self._sums[-1][2] < self._width:
            steps, losses, count, _ = self._sums[-1]
            self._sums[-1] = (steps + step, losses + loss, count + 1, step)
            return
        if len(self._sums) == self._limit:
            pairs = zip(self._sums[::2], self._sums[1::2], strict=True)
            self._sums = [(a[0] + b[0], a[1] + b[1], a[2] + b[2], b[3]) for a, b in pairs]
            self._width *= 2
        self._sums.append((step, loss, 1, step))

    def points(self) -> list[tuple[float, float]]:
        """(step, loss) in order."""
        return [(steps / count, losses / count) for steps, losses, count, _ in self._sums]


class Meter:
    """Reads what the ranks of a run measure; the last stage's file whole, of the others only the newest part."""

    def __init__(self, files: RunFiles, job: Job) -> None:
        self._files, self._job = files, job
        self._offsets: dict[int, int] = {}
        self._recent: dict[int, deque[StepMetrics]] = {rank.rank: deque(maxlen=WINDOW) for rank in job.ranks}
        self._last = job.loss_rank
        self._curve = Curve()

    def update(self) -> None:
        """Read what is new."""
        for rank, recent in self._recent.items():
            for step in self._new(rank):
                while recent and recent[-1].step >= step.step:
                    recent.pop()
                recent.append(step)
                if rank == self._last and step.loss is not None:
                    self._curve.add(step.step, step.loss)

    def _new(self, rank: int) -> Iterator[StepMetrics]:
        path = self._files.metrics(rank)
        if rank not in self._offsets:
            skip = path.exists() and rank != self._last
            self._offsets[rank] = max(0, path.stat().st_size - logfilter.BLOCK) if skip else 0
        for offset, line in logfilter.forward(str(path), self._offsets[rank]):
            self._offsets[rank] = offset
            if step := parse(line):
                yield step

    def progress(self) -> Progress:
        """The run as read so far."""
        recent = self._recent[self._last]
        newest = recent[-1] if recent else None
        paced = [step for step in recent if step.step > 1]  # how long the first takes says nothing of the others
        seconds, samples = sum(step.seconds for step in paced), sum(step.samples for step in paced)
        steps = self._job.spec.run.steps
        losses = [step.loss for step in list(recent)[-10:] if step.loss is not None]
        return Progress(
            step=newest.step if newest else 0,
            steps=steps,
            time=newest.time if newest else None,
            loss=sum(losses) / len(losses) if losses else None,
            losses=self._curve.points(),
            baseline_loss=baseline_loss(self._files),
            samples_per_second=samples / seconds if seconds else None,
            step_seconds=(pace := seconds / len(paced) if paced else None),
            eta=(steps - newest.step) * pace if newest and pace is not None else None,
            ranks=self._ranks(),
        )

    def _ranks(self) -> list[RankProgress]:
        ranks = [self._rank(placement) for placement in self._job.ranks]
        busy = {rank.placement.rank: rank.timing.busy for rank in ranks if rank.timing}
        slow = slow_ranks.factors(busy, self._job.plan)
        return [replace(rank, slow=slow.get(rank.placement.rank)) for rank in ranks]

    def _rank(self, placement: Placement) -> RankProgress:
        recent = self._recent[placement.rank]
        stages = self._job.plan.stages_of(placement.rank)
        layers = [self._job.plan.layers_of(stage) for stage in stages]
        minibatches = _sum(recent, "minibatches")
        if not minibatches:
            return RankProgress(placement, stages, layers, None)
        forward, backward, update = (_sum(recent, name) for name in ("forward", "backward", "update"))
        idle = max(0.0, 1 - (forward + backward + update) / _sum(recent, "seconds"))
        most = {name: max(getattr(step, name) for step in recent) for name in ("memory", "in_flight", "versions")}
        timing = Timing(forward / minibatches, backward / minibatches, update / minibatches, idle, **most)
        return RankProgress(placement, stages, layers, timing)


def _steady(recent: Iterable[StepMetrics]) -> list[StepMetrics]:
    """The steps without the first of the run, in which the pipeline fills, if there are others."""
    steps = list(recent)
    return [step for step in steps if step.step > 1] or steps


def _sum(recent: Iterable[StepMetrics], name: str) -> float:
    return float(sum(getattr(step, name) for step in _steady(recent)))


def parse(line: bytes) -> StepMetrics | None:
    """One line of a metrics file; None if it is torn."""
    try:
        return StepMetrics.read(line)
    except ValueError:
        return None


def steps_of(path: Path) -> list[StepMetrics]:
    """The steps of a rank in order, each once, from a file that need not exist."""
    steps: list[StepMetrics] = []
    for _, line in logfilter.forward(str(path), 0):
        if step := parse(line):
            while steps and steps[-1].step >= step.step:
                steps.pop()
            steps.append(step)
    return steps


def last_step(path: Path) -> StepMetrics | None:
    """The newest step in a metrics file."""
    return next(filter(None, (parse(line) for _, line in logfilter.backward(str(path)))), None)


def loss_curve(files: RunFiles, job: Job) -> list[tuple[float, float]]:
    """(step, loss) over the whole run, in at most as many points as a picture can show."""
    meter = Meter(files, job)
    meter.update()
    return meter.progress().losses


def baseline_loss(files: RunFiles) -> float | None:
    """The loss of always guessing by frequency, once the first stage has opened the data."""
    try:
        value = loads(files.data.read_bytes())["baseline_loss"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return float(value) if isinstance(value, (int, float)) else None
