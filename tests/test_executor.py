"""Which actions belong together, and what an update covers."""

from __future__ import annotations

import pytest

from worker.executor import UpdateRule, _with_joint_updates
from worker.runtime import UpdateOf
from worker.schedule import Action, Kind
from worker.spec.cluster import OptimizerSpec


def actions(text: str) -> list[Action]:
    """``0F1`` is minibatch 1 forward in stage 0."""
    kinds = {kind.value: kind for kind in Kind}
    return [Action(int(word[0]), kinds[word[1]], int(word[2:])) for word in text.split()]


@pytest.mark.parametrize(
    ("text", "joint"),
    [
        ("", ""),
        ("0F0 0B0 0U0 0F1 0B1 0U1", "0F0 | 0B0 | 0U0 | 0F1 | 0B1 | 0U1"),
        ("0F0 2F0 2B0 0B0 0U0 2U0 0F1", "0F0 | 2F0 | 2B0 | 0B0 | 0U0 2U0 | 0F1"),
        ("0B0 0U0 2U0 4U0", "0B0 | 0U0 2U0 4U0"),
        ("0U3 0U7 2U7", "0U3 | 0U7 2U7"),
    ],
)
def test_updates_after_the_same_minibatch_are_one(text: str, joint: str) -> None:
    expected = [actions(part) for part in joint.split("|") if part.strip()]
    assert list(_with_joint_updates(actions(text))) == expected


def rule(per_step: int, replicas: int = 1, is_flush: bool = False) -> UpdateRule:
    return UpdateRule(OptimizerSpec(), 10, per_step, replicas, is_flush, (), True, 1.0, 0)


@pytest.mark.parametrize(
    ("rule", "minibatch", "expected"),
    [
        (rule(4, is_flush=True), 7, UpdateOf(7, 4, 1)),
        (rule(4, 3, is_flush=True), 7, UpdateOf(7, 4, 1)),
        (rule(1, 3, is_flush=True), 5, UpdateOf(5, 1, 1)),
        (rule(1), 5, UpdateOf(5, 1, 1)),
        (rule(1, 3), 5, UpdateOf(5, 3, 3)),
        (rule(1, 3), 6, UpdateOf(6, 1, 1)),  # the last update of a run takes what is left
        (rule(4), 3, UpdateOf(3, 4, 1)),
    ],
)
def test_an_update_covers_a_step_or_one_minibatch_of_each_replica(
    rule: UpdateRule, minibatch: int, expected: UpdateOf
) -> None:
    assert rule.update_of(Action(0, Kind.UPDATE, minibatch)) == expected
