"""The steps of one rank over a whole run, thinned out to what a plot can show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from worker.spec.records import StepMetrics

POINTS = 400

Value = TypeVar("Value")


class Steps:
    """All steps that count: one that was done again after a resume is there once."""

    def __init__(self, steps: Sequence[StepMetrics]) -> None:
        self.steps = steps

    def losses(self, points: int = POINTS) -> list[tuple[int, float]]:
        """(step, mean loss) in at most so many pieces."""
        known = [(step.step, step.loss) for step in self.steps if step.loss is not None]
        return [(piece[-1][0], sum(loss for _, loss in piece) / len(piece)) for piece in _pieces(known, points)]

    def throughput(self, points: int = POINTS) -> list[tuple[int, float]]:
        """(step, samples per second), the first step left out: in it the pipeline fills."""
        return [
            (piece[-1].step, sum(step.samples for step in piece) / max(1e-9, sum(step.seconds for step in piece)))
            for piece in _pieces(self.steps[1:], points)
        ]

    def shares(self) -> dict[str, float | None]:
        """Seconds per minibatch by what they went into, all steps but the first; and the peak of memory in bytes.

        ``other`` is what neither computing nor waiting explains: the rank's own bookkeeping, checkpoints, evaluation.
        """
        steady = self.steps[1:] or self.steps
        minibatches = sum(step.minibatches for step in steady)
        if not minibatches:
            return {"forward": None, "backward": None, "update": None, "wait": None, "other": None, "memory": None}
        parts = {
            name: sum(getattr(step, name) for step in steady) / minibatches
            for name in ("forward", "backward", "update", "wait")
        }
        total = sum(step.seconds for step in steady) / minibatches
        other = max(0.0, total - sum(parts.values()))
        return {**parts, "other": other, "memory": max(step.memory for step in self.steps)}


def _pieces(values: Sequence[Value], points: int) -> Iterator[Sequence[Value]]:
    """Consecutive pieces of equal length, the last perhaps shorter; at most so many."""
    width = -(-len(values) // points) or 1
    return (values[at : at + width] for at in range(0, len(values), width))
