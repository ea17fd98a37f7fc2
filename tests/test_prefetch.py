"""Reading ahead: the same minibatches as without, bounded, and what goes wrong comes where it belongs."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import toy
from tests.rig import wait_for
from worker.data.base import Minibatch
from worker.errors import DataError
from worker.prefetch import Prefetched, numbers


class Noted(toy.Data):
    """Says which minibatches were read; fails at ``bad``; waits at each until it may go on."""

    def __init__(self, bad: int = -1) -> None:
        super().__init__()
        self.read: list[int] = []
        self.bad = bad

    def minibatch(self, number: int) -> Minibatch:
        self.read.append(number)
        if number == self.bad:
            raise DataError("corpus.txt:7: too bad")
        return super().minibatch(number)


def same(one: Minibatch, other: Minibatch) -> bool:
    return torch.equal(one.inputs["ids"], other.inputs["ids"]) and one.counts == other.counts


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 12), max_size=8), st.lists(st.integers(0, 12), max_size=8), st.integers(1, 3))
def test_whatever_was_foretold_the_minibatches_are_the_sources(
    foretold: list[int], asked: list[int], ahead: int
) -> None:
    source = Prefetched(toy.Data(), foretold, ahead)
    try:
        assert all(same(source.minibatch(number), toy.Data().minibatch(number)) for number in asked)
    finally:
        source.close()


def test_no_more_is_read_than_may_wait() -> None:
    data = Noted()
    source = Prefetched(data, range(100), 2)
    source.minibatch(0)
    wait_for(lambda: len(data.read) == 4)  # one given, two waiting, one in hand
    source.close()
    assert data.read == [0, 1, 2, 3]
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())


def test_a_bad_record_is_raised_where_it_is_asked_for() -> None:
    source = Prefetched(Noted(bad=2), range(100), 4)
    assert same(source.minibatch(0), toy.Data().minibatch(0))
    assert same(source.minibatch(1), toy.Data().minibatch(1))
    with pytest.raises(DataError, match=r"corpus\.txt:7: too bad"):
        source.minibatch(2)
    source.close()


@given(st.integers(0, 20), st.integers(1, 30), st.integers(1, 3))
def test_replicas_read_every_minibatch_once(start: int, count: int, replicas: int) -> None:
    read = [list(numbers(start, start + count, 1, replica, replicas)) for replica in range(replicas)]
    assert sorted(number for each in read for number in each) == list(range(start, start + count))
    assert all(number % replicas == replica for replica, each in enumerate(read) for number in each)
