"""PipeDream's optimizer, flat: its cost model and its dynamic program, to compare with and to reproduce its plans.

After Narayanan et al. 2019 and github.com/msr-fiddle/pipedream, optimizer_graph_hierarchical.py, on one level of
equal machines. Its quirks are kept where they are the model: no latency, no recomputation, a transfer in both
directions over one bandwidth, divided by the replicas of the later stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf

from worker.errors import UsageError
from worker.spec.profile import Profile


@dataclass(frozen=True)
class Stage:
    """Layers ``start`` to ``end``, the last left out, on so many replicas."""

    start: int
    end: int
    replicas: int


class CostModel:
    """What PipeDream takes a stage and a cut to cost, in seconds per minibatch.

    Args:
        bandwidth: bytes per second between any two machines.
        transfers: whether activations and gradients between stages cost anything; PipeDream leaves them out unless
            ``--activation_compression_ratio`` is given.
    """

    def __init__(self, profile: Profile, bandwidth: float, transfers: bool = True) -> None:
        self._work = [0.0, *accumulate(layer.seconds for layer in profile.layers)]
        self._parameters = [0, *accumulate(layer.parameter_bytes for layer in profile.layers)]
        self._outputs = [layer.output_bytes for layer in profile.layers]
        self._bandwidth = bandwidth
        self._transfers = transfers

    @property
    def layers(self) -> int:
        """How many there are."""
        return len(self._outputs)

    def stage(self, start: int, end: int, replicas: int) -> float:
        """Compute and the all-reduce of gradients after every minibatch, shared by the replicas."""
        parameters = self._parameters[end] - self._parameters[start]
        reduce = 4 * (replicas - 1) * parameters / (self._bandwidth * replicas)
        return (self._work[end] - self._work[start] + reduce) / replicas

    def cut(self, end: int, replicas: int) -> float:
        """The cut behind layer ``end`` - 1, there and back, seen from a stage of so many replicas."""
        if not self._transfers or end == self.layers:
            return 0.0
        return 2.0 * self._outputs[end - 1] / (self._bandwidth * replicas)

    def bottleneck(self, stages: Sequence[Stage]) -> float:
        """Seconds per minibatch of a whole plan."""
        times = [self.stage(stage.start, stage.end, stage.replicas) for stage in stages]
        later = stages[1:]
        cuts = [max(self.cut(each.start, each.replicas), self.cut(each.end, each.replicas)) for each in later]
        return max([*times, *cuts])


def solve(model: CostModel, machines: int, straight: bool = False) -> list[Stage]:
    """The plan with the least bottleneck that uses every machine.

    best(j, m) is the least bottleneck of the first j layers on m machines: one stage on all of them, or a last stage
    on some of them behind the best of the rest. O(layers^2 x machines^2) time; ``straight`` allows one replica only.

    Raises:
        UsageError: there are more machines than layers in a straight pipeline.
    """
    layers = model.layers
    if straight and machines > layers:
        raise UsageError(f"{machines} stages are more than the {layers} layers of the profile")
    best = [[inf] * (machines + 1) for _ in range(layers + 1)]
    choice: dict[tuple[int, int], tuple[int, int]] = {}
    for count in range(1, machines + 1):
        for end in range(1, layers + 1):
            if count == 1 or not straight:
                best[end][count] = model.stage(0, end, count)
            for start in range(1, end):
                for replicas in range(1, min(count, 2 if straight else count)):
                    before = best[start][count - replicas]
                    if before >= best[end][count]:
                        continue
                    cost = max(
                        before,
                        model.stage(start, end, replicas),
                        model.cut(start, replicas),
                        model.cut(end, replicas),
                    )
                    if cost < best[end][count]:
                        best[end][count], choice[end, count] = cost, (start, replicas)
    return _trace(choice, layers, machines)


def _trace(choice: dict[tuple[int, int], tuple[int, int]], end: int, machines: int) -> list[Stage]:
    stages: list[Stage] = []
    while (end, machines) in choice:
        start, replicas = choice[end, machines]
        stages.insert(0, Stage(start, end, replicas))
        end, machines = start, machines - replicas
    return [Stage(0, end, machines), *stages]
