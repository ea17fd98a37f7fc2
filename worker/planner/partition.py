"""Cut a list of layer costs into contiguous stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from math import inf


def balance(costs: Sequence[float], stages: int) -> list[int]:
    """Layers per stage, so that the most expensive stage is as cheap as it can be.

    Exact, by dynamic programming over prefixes: first the least possible cost of the dearest stage, then, among the
    cuts that reach it, the one with the least sum of squares (the evenest); of equals, the one whose last stages are
    largest. No stage is empty. O(layers^2 x stages) time, O(layers x stages) memory.

    Args:
        costs: one non-negative number a layer, in any unit.
        stages: 1 to ``len(costs)``.
    Raises:
        ValueError: if there are fewer layers than stages, or no stage.
    """
    if not 1 <= stages <= len(costs):
        raise ValueError(f"cannot cut {len(costs)} layers into {stages} stages")
    ends = [0.0, *accumulate(costs)]
    limit, _ = _least(ends, stages, max)
    _, partition = _least(ends, stages, lambda total, cost: total + cost * cost if cost <= limit else inf)
    return partition


def _least(ends: Sequence[float], stages: int, add: Callable[[float, float], float]) -> tuple[float, list[int]]:
    """The least total of ``stages`` stage costs joined by ``add``, and the partition that has it.

    ``ends[i]`` is the cost of the first i layers; ``add(total so far, cost of one more stage)`` must not decrease.
    """
    layers = len(ends) - 1
    best = [
        (add(0.0, end), 0) for end in ends
    ]  # of the first i layers: the least total, and where the last stage begins
    starts: list[list[int]] = []
    for stages_before in range(1, stages):
        starts.append([start for _, start in best])
        best = [
            min(
                ((add(best[start][0], ends[end] - ends[start]), start) for start in range(stages_before, end)),
                default=(inf, 0),
            )
            for end in range(layers + 1)
        ]
    (total, start), end = best[layers], layers
    partition = []
    for earlier in reversed(starts):
        partition.append(end - start)
        end, start = start, earlier[start]
    return total, [end, *reversed(partition)]
