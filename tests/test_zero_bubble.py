"""Schedules with the weight gradient apart: their pictures, and the searched one against published bubbles."""

from __future__ import annotations

from inspect import cleandoc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.planner.simulate import simulate
from worker.schedule import Setting, Times, actions, build, peak_activations, picture, search, validate

# forward, input gradient, weight gradient, hop in ms; hidden size, heads -> published bubble of ZB-1p and ZB-2p
# (arXiv 2401.10241, tables 5 and 9); 1024 tokens a sequence.
PUBLISHED = [
    (8, 24, 18.522, 18.086, 9.337, 0.601, 2304, 24, 0.1585, 0.0433),
    (8, 32, 18.513, 18.086, 9.331, 0.626, 2304, 24, 0.1242, 0.0039),
    (8, 64, 18.546, 18.097, 9.321, 0.762, 2304, 24, 0.0674, 0.0026),
    (16, 48, 11.347, 11.248, 8.132, 0.377, 5120, 40, 0.1397, 0.0066),
    (16, 64, 11.307, 11.254, 8.101, 0.379, 5120, 40, 0.1088, 0.0054),
    (16, 128, 11.325, 11.308, 8.109, 0.378, 5120, 40, 0.0576, 0.0028),
]
CELLS = [(*row[:8], times, bound) for row in PUBLISHED for times, bound in zip((1, 2), row[8:], strict=True)]


def test_zb_h1_picture() -> None:
    assert picture(build("zb-h1", "bsp", Setting(4, range(6)))) == cleandoc("""
        F0 F1 F2 F3 I0 W0 F4 I1 W1 F5 I2 W2 I3 W3 I4 W4 I5 W5 U5
        F0 F1 F2 I0 F3 I1 W0 F4 I2 W1 F5 I3 W2 I4 W3 I5 W4 W5 U5
        F0 F1 I0 F2 I1 F3 I2 W0 F4 I3 W1 F5 I4 W2 I5 W3 W4 W5 U5
        F0 I0 F1 I1 F2 I2 F3 I3 W0 F4 I4 W1 F5 I5 W2 W3 W4 W5 U5""")


def test_zb_h2_picture() -> None:
    assert picture(build("zb-h2", "bsp", Setting(3, range(6)))) == cleandoc("""
        F0 F1 F2 F3 F4 I0 W0 F5 I1 W1 I2 W2 I3 W3 I4 W4 I5 W5 U5
        F0 F1 F2 I0 F3 I1 F4 I2 W0 F5 I3 W1 I4 W2 I5 W3 W4 W5 U5
        F0 I0 F1 I1 F2 I2 F3 I3 F4 I4 W0 F5 I5 W1 W2 W3 W4 W5 U5""")


def test_zb_auto_picture() -> None:
    """Its last stage is slow, so weight gradients are put off until those before need nothing from it any more."""
    setting = Setting(3, range(5), 6, times=(Times(), Times(), Times(input_grad=2.0)), hop=0.5)
    assert picture(build("zb-auto", "bsp", setting)) == cleandoc("""
        F0 F1 F2 F3 F4 I0 W0 I1 W1 I2 W2 I3 W3 I4 W4 U4
        F0 F1 F2 I0 F3 I1 F4 I2 W0 I3 W1 I4 W2 W3 W4 U4
        F0 I0 F1 I1 F2 I2 F3 I3 F4 I4 W0 W1 W2 W3 W4 U4""")


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_zb_auto_is_at_or_below_the_published_bubble(cell: tuple[float, ...]) -> None:
    """At the published memory: ``stages`` or twice as many activations of 34 h + 5 a s, of which W frees 32 h."""
    stages, minibatches, forward, input_grad, weight_grad, hop, hidden, heads, factor, published = cell
    stages, times = int(stages), Times(forward, input_grad, weight_grad)
    share = 32 * hidden / (34 * hidden + 5 * heads * 1024)
    limit = int(factor) * stages
    setting = Setting(stages, range(int(minibatches)), limit, times=(times,) * stages, hop=hop, weight_share=share)
    ranks = build("zb-auto", "bsp", setting)
    assert max(peak_activations(rank, share) for rank in ranks) <= limit + 1e-9
    assert round(simulate(ranks, times, hop).bubble_rate, 4) <= published


times = st.builds(Times, *[st.sampled_from([0.0, 0.5, 1.0, 2.5])] * 3)


@settings(max_examples=40, deadline=None)
@given(
    stages=st.integers(1, 4),
    minibatches=st.integers(1, 6),
    in_flight=st.none() | st.integers(1, 9),
    hop=st.sampled_from([0.0, 0.3, 2.0]),
    weight_share=st.sampled_from([0.0, 0.4, 1.0]),
    data=st.data(),
)
def test_zb_auto_is_valid_and_no_worse_than_by_hand(
    stages: int, minibatches: int, in_flight: int | None, hop: float, weight_share: float, data: st.DataObject
) -> None:
    """Within its memory, whatever the times; and not slower than the handcrafted order of that depth."""
    of_stage = data.draw(st.lists(times, min_size=stages, max_size=stages))
    limit = in_flight or stages
    setting = Setting(stages, range(minibatches), limit, times=tuple(of_stage), hop=hop, weight_share=weight_share)
    found, by_hand = build("zb-auto", "bsp", setting), build("zb-h1", "bsp", setting)
    validate(found, in_flight=limit, versions=1, weight_share=weight_share)
    assert simulate(found, of_stage, hop).cost <= simulate(by_hand, of_stage, hop).cost + 1e-6


def test_more_memory_is_no_slower() -> None:
    setting = [Setting(4, range(8), limit, times=(Times(1.0, 1.1, 0.7),) * 4, hop=0.1) for limit in (1, 2, 4, 6, 8)]
    costs = [simulate(build("zb-auto", "bsp", each), each.times or (), 0.1).cost for each in setting]
    assert costs == sorted(costs, reverse=True)


def test_every_step_is_searched_once() -> None:
    """Steps differ by their minibatches' numbers only, so the order of the first serves them all."""
    search.search.cache_clear()
    first, second = (list(actions("zb-auto", "bsp", 1, 3, range(start, start + 5))) for start in (0, 5))
    assert [(each.kind, each.minibatch + 5) for each in first] == [(each.kind, each.minibatch) for each in second]
    assert search.search.cache_info().misses == 1
