"""balance against brute force, and the plan made with it."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.planner import balance, make_plan
from worker.planner.estimate import layer_flops
from worker.spec.cluster import BertSpec, ClusterSpec, DataSpec, PipelineSpec


def sums(costs: list[int], partition: list[int]) -> list[int]:
    rest = iter(costs)
    return [sum(next(rest) for _ in range(layers)) for layers in partition]


def quality(stages: list[int]) -> tuple[int, int]:
    """The largest stage, then the sum of squares: less is better."""
    return max(stages), sum(cost**2 for cost in stages)


def every_partition(layers: int, stages: int) -> list[list[int]]:
    cuts = [(0, *inner, layers) for inner in combinations(range(1, layers), stages - 1)]
    return [[end - start for start, end in pairwise(cut)] for cut in cuts]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.data())
def test_as_good_as_the_best_of_all_partitions(costs: list[int], data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, len(costs)))
    partition = balance(costs, stages)
    best = min(quality(sums(costs, each)) for each in every_partition(len(costs), stages))
    assert quality(sums(costs, partition)) == best


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=40), st.data())
def test_every_layer_has_a_stage_and_every_stage_a_layer(costs: list[float], data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, len(costs)))
    partition = balance(costs, stages)
    assert (len(partition), sum(partition), min(partition) >= 1) == (stages, len(costs), True)


@pytest.mark.parametrize(
    ("costs", "stages", "partition"),
    [
        ([1, 1, 1, 1], 2, [2, 2]),
        ([1, 1, 1, 1, 10], 3, [2, 2, 1]),  # whatever the first four do, 10 is the largest: the evenest is taken
        ([10, 1, 1, 1, 1], 3, [1, 2, 2]),
        ([1, 1, 1], 2, [1, 2]),  # [2, 1] is as good
        ([0, 0, 0], 3, [1, 1, 1]),
        ([5], 1, [1]),
    ],
)
def test_partitions(costs: list[int], stages: int, partition: list[int]) -> None:
    assert balance(costs, stages) == partition


@pytest.mark.parametrize("stages", [0, 3])
def test_impossible_numbers_of_stages(stages: int) -> None:
    with pytest.raises(ValueError, match=f"cannot cut 2 layers into {stages} stages"):
        balance([1, 1], stages)


def test_bert_base_costs_what_its_matrices_say() -> None:
    """BERT-base at 512 tokens: 85.1 M weights in encoder matrices, two FLOPs a weight and token, and the scores."""
    spec = ClusterSpec(
        machines=["cpu"],
        model=BertSpec(hidden_size=768, num_layers=12, num_heads=12),
        data=DataSpec(sequence_length=512, vocab_size=30522),
    )
    costs = layer_flops(spec)
    encoder = 2 * 84_934_656 * 512 + 12 * 4 * 768 * 512 * 512
    assert len(costs) == spec.model.layer_count
    assert sum(costs[1:-1]) == pytest.approx(encoder, rel=0.01)
    assert costs[0] < 0.01 * costs[1] and costs[2] > costs[1]


def test_auto_says_how_even_it_is() -> None:
    plan = make_plan(ClusterSpec(machines=["cpu*2"], pipeline=PipelineSpec(recompute_ratio=0.5)), 2)
    assert sum(plan.partition) == 10 and plan.recompute_ratio == [0.5, 0.5]
    assert plan.reason.startswith("auto: balances estimated FLOPs per layer; largest stage ")
    assert plan.reason.endswith(" % above the mean")


def test_lists_given_are_kept() -> None:
    pipeline = PipelineSpec(partition=[4, 6], recompute_ratio=[0.0, 1.0])
    plan = make_plan(ClusterSpec(machines=["cpu*2"], pipeline=pipeline), 2)
    assert (plan.partition, plan.recompute_ratio, plan.reason) == ([4, 6], [0.0, 1.0], "given in cluster.yml")
