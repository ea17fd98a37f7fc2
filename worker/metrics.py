"""Numbers per step: where a rank's time went, what it lost, what it held."""

from __future__ import annotations

import math
import resource
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from worker.schedule import Kind
from worker.spec.records import StageResult, StepMetrics
from worker.trace import Stopwatch


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: the process's resident set on a CPU, what was allocated on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


IDLE = dict.fromkeys(Kind, 0.0)
"""Seconds of each kind of action before a step has begun."""

ASK_SECONDS = 0.1
"""Between two questions for the peak of memory: the kernel's answer costs as much as a small action."""


class Update(NamedTuple):
    """What an update says of itself.

    ``step`` counts from 1; ``minibatches`` are those it covers, on all replicas; ``losses`` are means by loss term, on
    the last stage only; ``norm`` is the gradient's, where it was computed.
    """

    step: int
    minibatches: int
    losses: list[float]
    rate: float
    norm: float | None


class StepClock:
    """Adds up what the actions of one step cost, and what they gave.

    Args:
        waiting: runs whenever the rank waits for another or for data; that time is not the action's own.
        report: receives the numbers of each step.
    """

    def __init__(
        self,
        waiting: Stopwatch,
        samples_per_minibatch: int,
        device: torch.device,
        report: Callable[[StepMetrics], None],
    ) -> None:
        self._waiting = waiting
        self._samples = samples_per_minibatch
        self._device = device
        self._report = report
        self._step_ended = time.perf_counter()
        self._peak, self._asked = 0, -math.inf
        self._begin_step()

    def _begin_step(self) -> None:
        self._busy = IDLE.copy()
        self._minibatches = self._in_flight = 0
        self._versions = 1
        self._waited_before = self._waiting.seconds

    def start(self) -> None:
        """Begin an action, the wait for its tensors included."""
        self._started = time.perf_counter_ns() - self._waiting.nanoseconds

    def stop(self, kind: Kind) -> None:
        """End the action begun last."""
        self._busy[kind] += 1e-9 * (time.perf_counter_ns() - self._waiting.nanoseconds - self._started)
        self._minibatches += kind is Kind.FORWARD

    def holds(self, in_flight: int, versions: int) -> None:
        """Take note of what the rank holds now: minibatches in flight, and versions of its weights."""
        self._in_flight, self._versions = max(self._in_flight, in_flight), max(self._versions, versions)

    def end_step(self, update: Update) -> None:
        """Report the step that ``update`` has just ended."""
        now = time.perf_counter()
        self._report(
            StepMetrics(
                step=update.step,
                time=time.time(),
                samples=update.minibatches * self._samples,
                minibatches=self._minibatches,
                loss=update.losses[0] if update.losses else None,
                other_losses=update.losses[1:],
                lr=update.rate,
                forward=self._busy[Kind.FORWARD],
                backward=self._busy[Kind.BACKWARD] + self._busy[Kind.INPUT_GRAD] + self._busy[Kind.WEIGHT_GRAD],
                update=self._busy[Kind.UPDATE],
                wait=self._waiting.seconds - self._waited_before,
                seconds=now - self._step_ended,
                memory=self._memory(now),
                grad_norm=update.norm,
                in_flight=self._in_flight,
                versions=self._versions,
            )
        )
        self._step_ended = now
        self._begin_step()

    def _memory(self, now: float) -> int:
        if now - self._asked > ASK_SECONDS:
            self._peak, self._asked = peak_memory(self._device), now
        return self._peak


class MetricsFile:
    """Appends the steps of one rank to metrics/rank-N.jsonl, at most ``FLUSH_SECONDS`` late, and sums them up.

    A run that is resumed does some steps again. The file is only ever appended to, for others copy it by byte offset;
    who reads it takes a step that is not behind the last one for a new beginning, and drops what it had from there on.

    Args:
        steps: of the whole run.
        done: those before the one that this rank begins with; what the file has of them is counted, and no more.
    """

    FLUSH_SECONDS = 0.2

    def __init__(self, path: Path, steps: int, done: int = 0) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        self.totals = Totals(tail=max(10, steps // 20))
        torn = False
        if done:
            torn = self._count(path, done)
        self._file = path.open("a", encoding="utf-8")
        if torn:
            self._file.write("\n")
        self._flushed = 0.0

    def _count(self, path: Path, done: int) -> bool:
        """Count the steps up to ``done`` that are in the file, each once; whether its last line is torn."""
        steps: dict[int, StepMetrics] = {}
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        for line in lines:
            with suppress(ValueError):
                step = StepMetrics.read(line)
                steps[step.step] = step
        for number in sorted(steps):
            if number <= done:
                self.totals.add(steps[number])
        return bool(lines[-1])

    def write(self, step: StepMetrics) -> None:
        """Add one step."""
        self.totals.add(step)
        self._file.write(step.line() + "\n")
        if step.time - self._flushed > self.FLUSH_SECONDS:
            self._file.flush()
            self._flushed = step.time

    def flush(self) -> None:
        """Write out what there is."""
        self._file.flush()

    def close(self) -> None:
        """Write out what is left."""
        self._file.close()


@dataclass
class Totals:
    """A whole run in sums. The first step, which waits for the pipeline to fill, is left out when there are others."""

    tail: int
    steps: int = 0
    samples: int = 0
    minibatches: int = 0
    seconds: float = 0.0
    all_seconds: float = 0.0
    busy: float = 0.0
    memory: int = 0

    def __post_init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=self.tail)

    def add(self, step: StepMetrics) -> None:
        """Count one step."""
        self.steps += 1
        if self.steps == 2:
            self.samples, self.minibatches, self.seconds, self.busy = 0, 0, 0.0, 0.0
        self.samples += step.samples
        self.minibatches += step.minibatches
        self.seconds += step.seconds
        self.all_seconds += step.seconds
        self.busy += step.forward + step.backward + step.update
        self.memory = step.memory
        if step.loss is not None:
            self.losses.append(step.loss)

    @property
    def loss(self) -> float | None:
        """Mean loss of the last ``tail`` steps."""
        return sum(self.losses) / len(self.losses) if self.losses else None

    @property
    def step_seconds(self) -> float:
        """Mean wall time of a step; of all but the first, if there are others."""
        return self.seconds / max(1, self.steps - 1)

    def stage_result(self, stage: int, rank: int, layers: int) -> StageResult:
        """What this rank reports of itself at the end."""
        return StageResult(
            stage=stage,
            rank=rank,
            layers=layers,
            stage_seconds=self.busy / max(1, self.minibatches),
            idle_share=max(0.0, 1 - self.busy / max(self.seconds, 1e-9)),
            peak_memory_bytes=self.memory,
        )
