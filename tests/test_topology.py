"""Addresses of messages: what one side sends is what the other expects, whatever the numbers of replicas."""

from __future__ import annotations

import pytest
import torch

from worker.communication import Address
from worker.data.base import TensorSpec
from worker.flow import Cut
from worker.schedule import Action, Kind
from worker.spec.job import Plan
from worker.topology import Tie, Topology, activation, first_uses, gradient, target, weight

HIDDEN, MASK = TensorSpec((2, 3), torch.float32), TensorSpec((2,), torch.bool)
CUT = Cut({"hidden": HIDDEN, "mask": MASK}, frozenset({"hidden"}))
TIE = Tie("head.w", "embed.w", 2, 0, HIDDEN)
REPLICAS = [(1, 1, 1), (1, 2, 1), (2, 1, 3), (3, 2, 1), (2, 2, 2), (4, 3, 2)]


def topology(replicas: tuple[int, ...], stage: int, rank: int) -> Topology:
    plan = Plan(partition=[1] * 3, recompute_ratio=[0.0] * 3, reason="a test", replicas=list(replicas))
    return Topology(plan, stage, rank, (CUT,) * 3, {"labels": MASK}, (TIE,))


def all_ranks(replicas: tuple[int, ...]) -> list[Topology]:
    plan = topology(replicas, 0, 0).plan
    return [topology(replicas, stage, rank) for stage in range(3) for rank in plan.ranks_of(stage)]


def home(ranks: list[Topology], stage: int, minibatch: int) -> Topology:
    return next(each for each in ranks if each.stage == stage and each.plan.rank_of(stage, minibatch) == each.rank)


def expected_by(ranks: list[Topology], kind: Kind, minibatch: int) -> set[Address]:
    """By all stages; the first has nobody before it and the last nobody behind it."""
    expected = [each.expected(Action(each.stage, kind, minibatch), ["head.w"]) for each in ranks]
    assert expected[0 if kind is Kind.FORWARD else 2] == []
    return {one.address for each in expected for one in each}


@pytest.mark.parametrize("replicas", REPLICAS, ids=str)
def test_a_forward_expects_what_was_sent_for_it(replicas: tuple[int, ...]) -> None:
    for minibatch in range(7):
        first, middle, last = (home(all_ranks(replicas), stage, minibatch) for stage in range(3))
        sent = {
            first.to(1, activation("hidden", 1), minibatch),
            first.to(1, activation("mask", 1), minibatch),
            middle.to(2, activation("hidden", 2), minibatch),
            middle.to(2, activation("mask", 2), minibatch),
            first.to(2, target("labels"), minibatch),
            first.to(2, weight("head.w"), minibatch),
        }
        assert expected_by([first, middle, last], Kind.FORWARD, minibatch) == sent


@pytest.mark.parametrize("replicas", REPLICAS, ids=str)
@pytest.mark.parametrize("kind", [Kind.BACKWARD, Kind.INPUT_GRAD])
def test_a_backward_expects_what_was_sent_for_it(kind: Kind, replicas: tuple[int, ...]) -> None:
    for minibatch in range(7):
        first, middle, last = (home(all_ranks(replicas), stage, minibatch) for stage in range(3))
        sent = {middle.to(0, gradient("hidden", 0), minibatch), last.to(1, gradient("hidden", 1), minibatch)}
        assert expected_by([first, middle, last], kind, minibatch) == sent


@pytest.mark.parametrize("replicas", REPLICAS, ids=str)
def test_every_replica_of_an_owner_gets_each_gradient_once(replicas: tuple[int, ...]) -> None:
    ranks = all_ranks(replicas)
    sent = [address for each in ranks for tie in each.borrowed for address in each.to_owners(tie, 5)]
    expected = [one.address for each in ranks for one in each.expected(Action(each.stage, Kind.UPDATE, 5), [])]
    assert sorted(map(str, sent)) == sorted(map(str, expected))
    assert len(expected) == replicas[0]


def test_a_weight_gradient_expects_nothing() -> None:
    assert topology((1, 1, 1), 1, 1).expected(Action(1, Kind.WEIGHT_GRAD, 3), ["head.w"]) == []


def test_all_ranks_number_messages_alike() -> None:
    names = [each.names() for each in all_ranks((2, 1, 3))]
    assert all(each == names[0] for each in names)
    assert len(set(names[0])) == len(names[0])
    assert {activation("mask", 2), gradient("hidden", 0), target("labels"), weight("head.w")} <= set(names[0])


def test_an_address_says_what_is_where() -> None:
    assert str(topology((1, 1, 1), 0, 0).to(1, activation("hidden", 1), 4)) == (
        "activation hidden into stage 1 of minibatch 4, rank 0 -> rank 1"
    )


@pytest.mark.parametrize(
    ("versions", "borrowers", "expected"),
    [
        ([0, 0, 0, 0], 1, [0]),
        ([0, 0, 1, 2, 2], 1, [0, 2, 3]),
        ([0, 0, 0, 0], 2, [0, 1]),
        ([0, 0, 1, 1, 1, 2], 2, [0, 1, 2, 3, 5]),
        ([0, 1, 0, 1], 2, [0, 1]),
        ([0, 0, 1, 1], 3, [0, 1, 2, 3]),
    ],
)
def test_a_version_travels_once_to_each_replica(versions: list[int], borrowers: int, expected: list[int]) -> None:
    assert list(first_uses(enumerate(versions), borrowers)) == expected
