"""Several stages on each device: near the best of all cuts, within memory, and simulated as they run."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.test_planner import bert, chain, layers
from worker.errors import ScheduleError, UsageError
from worker.planner.choose import OutOfMemory, choose, evaluate
from worker.planner.chunked import unfolded
from worker.planner.costs import Fleet
from worker.planner.scheme import Scheme
from worker.planner.solve import Freedom
from worker.spec.profile import LayerProfile, LinkProfile, Profile

INTERLEAVED, ZB_V = (Scheme(name, "bsp", 4, chunks=2) for name in ("interleaved", "zb-v"))


@pytest.mark.parametrize("scheme", [INTERLEAVED, ZB_V], ids=lambda scheme: scheme.schedule)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(layers(), min_size=5, max_size=7))
def test_no_cut_is_faster_than_the_bound(scheme: Scheme, chain: list[LayerProfile]) -> None:
    profile, fleet = Profile(layers=chain), Fleet.of(2)
    plans = [
        evaluate(profile, fleet, scheme, [b - a for a, b in pairwise((0, *cuts, len(chain)))], [1] * 4, [0.0] * 4)
        for cuts in combinations(range(1, len(chain)), 3)
    ]
    chosen = choose(profile, fleet, [scheme], Freedom())
    steps = [plan.step_seconds for plan in plans]
    assert chosen.lower_bound <= min(steps) * (1 + 1e-9) <= chosen.step_seconds * (1 + 2e-9)


@pytest.mark.parametrize("place", range(0, 10, 3))
def test_an_uneven_layer_is_cut_around_as_well_as_can_be(place: int) -> None:
    seconds = [1.0] * 10
    seconds[place] = 4.0
    profile, fleet = chain(*seconds), Fleet.of(2)
    steps = [
        evaluate(
            profile, fleet, INTERLEAVED, [b - a for a, b in pairwise((0, *cuts, 10))], [1] * 4, [0.0] * 4
        ).step_seconds
        for cuts in combinations(range(1, 10), 3)
    ]
    assert choose(profile, fleet, [INTERLEAVED], Freedom()).step_seconds <= 1.1 * min(steps)


def test_equal_layers_come_in_equal_stages_with_the_bubble_of_the_schedule() -> None:
    """Interleaved with v chunks on p devices idles (p - 1) / v minibatches: 8 + 3 / 2 stages' times of 3 each."""
    plan = choose(chain(*[1.0] * 8), Fleet.of(4), [Scheme("interleaved", "bsp", 8, chunks=2)], Freedom())
    assert plan.partition == [1] * 8
    assert plan.step_seconds == pytest.approx((8 + 3 / 2) * 6)
    assert plan.loads == pytest.approx([6.0] * 4)


def test_zb_v_is_never_idle_where_all_parts_take_as_long() -> None:
    plan = choose(chain(*[1.0] * 8), Fleet.of(4), [Scheme("zb-v", "bsp", 8, chunks=2)], Freedom())
    assert (plan.partition, plan.loads) == ([1] * 8, pytest.approx([6.0] * 4))
    assert plan.step_seconds == pytest.approx(8 * 6)


def test_zb_v_turns_back_at_the_last_device() -> None:
    there = LinkProfile(latency=1.0, forward=2.0, backward=3.0)
    fleet = unfolded(Fleet.of(2, links=[there], speeds=[1.0, 2.0]), ZB_V)
    assert fleet.speeds == (1.0, 2.0, 2.0, 1.0)
    assert fleet.links[0] == there and fleet.links[1].latency == 0.0
    assert fleet.links[2] == LinkProfile(latency=1.0, forward=3.0, backward=2.0)
    plan = choose(chain(*[1.0] * 9, 3.0), Fleet.of(2), [ZB_V], Freedom())
    assert plan.loads == pytest.approx([sum(plan.stages[s].pace for s in pair) for pair in ((0, 3), (1, 2))])


def test_one_device_may_take_a_large_layer_and_a_small_stage() -> None:
    """What counts is the load of a device: the large layer's one gets less in its other stage."""
    plan = choose(chain(*[1.0] * 9, 3.0), Fleet.of(2), [INTERLEAVED], Freedom())
    assert max(plan.loads) == pytest.approx(18.0)


def test_memory_makes_it_recompute_what_frees_most() -> None:
    def most(fleet: Fleet) -> tuple[float, list[float]]:
        plan = choose(bert(4), fleet, [Scheme("interleaved", "bsp", 16, chunks=2)], Freedom())
        return max(stage.cost.memory for stage in plan.stages), plan.recompute_ratio

    free, none = most(Fleet.of(4))
    assert none == [0.0] * 8
    tight, some = most(Fleet.of(4, free * 0.8))
    assert tight <= free * 0.8 and 0 < sum(some) < 8


def test_too_little_memory_says_how_much_would_do() -> None:
    scheme = Scheme("interleaved", "bsp", 8, chunks=2)
    with pytest.raises(OutOfMemory, match="the least that would do is") as caught:
        choose(bert(4), Fleet.of(4, 2.0**30), [scheme], Freedom())
    assert choose(bert(4), Fleet.of(4, caught.value.least * 1.01), [scheme], Freedom()).partition


def test_of_several_schedules_it_may_be_the_fastest() -> None:
    schemes = [Scheme("1f1b", "bsp", 4), INTERLEAVED]
    assert choose(chain(*[1.0] * 8), Fleet.of(2), schemes, Freedom()).scheme.schedule == "interleaved"
    link = LinkProfile(latency=50.0, forward=1e18, backward=1e18)
    assert choose(chain(*[1.0] * 8), Fleet.of(2, links=[link]), schemes, Freedom()).scheme.schedule == "1f1b"


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ScheduleError, match="4 stages are more than the 3 layers"):
        choose(chain(1.0, 1.0, 1.0), Fleet.of(2), [INTERLEAVED], Freedom())
    with pytest.raises(UsageError, match="it needs 4 of 8"):
        evaluate(chain(*[1.0] * 8), Fleet.of(2), INTERLEAVED, [4, 4], [1, 1], [0.0, 0.0])
