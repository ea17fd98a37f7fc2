"""What no plan can be faster than, worked out without looking for one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from worker.planner.costs import Costs
from worker.planner.solve import Solver
from worker.spec.profile import Profile


def step_bound(solver: Solver, profile: Profile, costs: Costs, is_straight: bool) -> float:
    """Seconds that no step can be below, whatever the plan, on these devices under this schedule.

    The bound of the bottleneck for every minibatch. Under flushes also one minibatch through all layers; and, straight,
    what filling and draining costs: see ``_flush_bound``.
    """
    scheme, fastest = costs.scheme, max(costs.fleet.speeds)
    bound = solver.lower_bound() * scheme.minibatches
    splits = scheme.schedule.startswith("zb-")
    through = sum(each.forward + each.input_grad + (0.0 if splits else each.weight_grad) for each in profile.layers)
    if scheme.chunks > 1:
        # Several stages share a device: all of them together are its work.
        bound = max(bound, costs.work[-1] * scheme.chunks / sum(costs.fleet.speeds) * scheme.minibatches)
    if scheme.schedule == "none":
        return max(bound, through / fastest * scheme.minibatches)
    if scheme.flushes:
        bound = max(bound, through / fastest)
        if is_straight:
            before = [0.0, *accumulate(each.forward if splits else each.seconds for each in profile.layers)]
            bound = max(bound, _flush_bound(costs.work, before, scheme.minibatches, costs.fleet.devices) / fastest)
    return bound


def _flush_bound(work: Sequence[float], before: Sequence[float], minibatches: int, stages: int) -> float:
    """The least, over all cuts, of the largest m T(s) + what stages before s need for one minibatch.

    Stage s begins once the first minibatch has come through the stages before it, and what it did last must still go
    back through them (not so where a weight gradient comes last: then ``before`` counts forwards alone). The first cut
    that keeps all within a limit is the greedy one, so bisection finds it: O(stages log layers) for each limit.
    """
    low, high = 0.0, minibatches * work[-1] + before[-1]
    while high - low > 1e-9 * high:
        limit, start = (low + high) / 2, 0
        for _ in range(stages):
            room = (limit - before[start]) / minibatches
            start = bisect_right(work, work[start] + room) - 1 if room > 0 else start
            if start >= len(work) - 1:
                break
        low, high = (low, limit) if start >= len(work) - 1 else (limit, high)
    return low
