"""Reading ahead: the same minibatches as without, bounded, and what goes wrong comes where it belongs."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import harness, ranks, toy
from tests.rig import wait_for
from worker import trace
from worker.data.base import Minibatch
from worker.errors import DataError
from worker.feed import Feeder
from worker.models.base import Model
from worker.prefetch import Prefetched, numbers
from worker.spec.cluster import ClusterSpec, DataSpec, PipelineSpec, RunSpec
from worker.trace import Stopwatch
from worker.train import _read_ahead


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


def test_a_whole_step_is_read_ahead_where_a_step_has_several(tmp_path: Path) -> None:
    """Its first minibatch cannot leave before all are read, so reading them must not begin with it."""
    pipeline = PipelineSpec(sync_mode="bsp", minibatches_per_step=5)
    spec = ClusterSpec(machines=["cpu"], pipeline=pipeline, data=DataSpec(prefetch=1), run=RunSpec(steps=3))
    data = Noted()
    ahead = _read_ahead(harness.job_of(spec, [1]), 0, data, 0, 0)
    assert ahead is not None
    Feeder(ahead, 5, torch.device("cpu"), Stopwatch())(0)
    wait_for(lambda: data.read[:10] == list(range(10)))
    ahead.close()


class Handshake:
    """Minibatch k is read only while k - 1 is computed, which only ends once that is done: both or neither."""

    def __init__(self, count: int) -> None:
        self.computing = [threading.Event() for _ in range(count)]
        self.read = [threading.Event() for _ in range(count)]
        self.times: dict[int, int] = {}

    def compute(self) -> None:
        number = sum(event.is_set() for event in self.computing)
        self.computing[number].set()
        assert number + 1 == len(self.read) or self.read[number + 1].wait(60.0)


class ReadMeanwhile(toy.Data):
    def __init__(self, hands: Handshake) -> None:
        super().__init__()
        self.hands = hands

    def minibatch(self, number: int) -> Minibatch:
        assert number == 0 or self.hands.computing[number - 1].wait(60.0)
        minibatch = super().minibatch(number)
        self.hands.times[number] = time.monotonic_ns()
        self.hands.read[number].set()
        return minibatch


def test_a_trace_shows_that_data_are_there_when_the_first_stage_asks(tmp_path: Path) -> None:
    """Reading costs the stage nothing: what it waits for by the name of data begins when the read is over."""
    steps = 6
    spec = ClusterSpec(machines=["cpu"], run=RunSpec(steps=steps, stall_timeout=60.0))
    job, path = harness.job_of(spec, [4]), tmp_path / "trace"

    def main(rank: int) -> dict[int, int]:
        hands = Handshake(steps)

        class Embed(toy.Embed):
            def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
                if not ids.is_meta:
                    hands.compute()
                return super().forward(ids)

        plain = toy.model(blocks=2)
        model = Model((replace(plain.layers[0], build=Embed), *plain.layers[1:]), tied=plain.tied)
        trace.open_at(path, {"rank": rank}, 100, 100)
        source = Prefetched(ReadMeanwhile(hands), range(steps), 1)
        harness._rank(job, model, source, tmp_path, None, rank)
        source.close()
        trace.close()
        return hands.times

    (times,) = ranks.run(1, tmp_path, main)
    spans = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    waits = {minibatch: begin for kind, _, begin, _, _, minibatch, _ in spans if kind == "data"}
    assert waits.keys() == set(range(1, steps)), "step 1 is not recorded"
    assert all(times[minibatch] <= begin for minibatch, begin in waits.items())


@given(st.integers(0, 20), st.integers(1, 30), st.integers(1, 3))
def test_replicas_read_every_minibatch_once(start: int, count: int, replicas: int) -> None:
    read = [list(numbers(start, start + count, 1, replica, replicas)) for replica in range(replicas)]
    assert sorted(number for each in read for number in each) == list(range(start, start + count))
    assert all(number % replicas == replica for replica, each in enumerate(read) for number in each)
