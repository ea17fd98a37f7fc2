"""What a rank says in its log: what it holds, and every few seconds how far it is."""

from __future__ import annotations

import time
from collections.abc import Iterable

from worker.spec.records import StepMetrics
from worker.stage import Stage


class Narrator:
    """Says where a rank is: at its first and last step, and every ``EVERY`` seconds between."""

    EVERY = 10.0

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._since: list[StepMetrics] = []
        self._said = 0.0

    def holds(self, stages: Iterable[Stage]) -> None:
        """Say which layers this rank has."""
        for stage in stages:
            parameters = sum(parameter.numel() for parameter in stage.stash.parameters.values())
            first, last = stage.layers[0].name, stage.layers[-1].name
            recomputed = len(stage.layers) - stage.first_recomputed
            what = f"{first} to {last}: {len(stage.layers)} layers" if first != last else f"{first}: 1 layer"
            _say(f"{what}, {recomputed} of them recomputed, {parameters / 1e6:.2f} M parameters")

    def step(self, step: StepMetrics) -> None:
        """Take in a step; say something if it is time."""
        self._since.append(step)
        now = time.monotonic()
        if step.step > 1 and step.step < self._steps and now - self._said < self.EVERY:
            return
        seconds = sum(each.seconds for each in self._since)
        wait = sum(each.wait for each in self._since) / seconds if seconds else 0.0
        losses = [each.loss for each in self._since if each.loss is not None]
        loss = f"  loss {sum(losses) / len(losses):.3f}" if losses else ""
        mean = 1000 * seconds / len(self._since)
        _say(f"step {step.step}/{self._steps}{loss}  {mean:.0f} ms a step, {wait:.0%} waiting")
        self._said, self._since = now, []


def _say(text: str) -> None:
    print(text, flush=True)
