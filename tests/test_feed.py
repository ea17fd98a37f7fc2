"""Minibatches as the first stage gets them: their weights, and every way in which a source can break its promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests import toy
from worker.data.base import Minibatch
from worker.errors import DataError
from worker.feed import Feeder
from worker.runtime import LOSS_WEIGHTS
from worker.trace import Stopwatch

CPU = torch.device("cpu")


class Source(toy.Data):
    """The toy's data, with one minibatch changed; remembers what was asked for."""

    def __init__(self, odd: int = -1, change: Callable[[Minibatch], Any] = lambda m: m, varies: bool = False) -> None:
        super().__init__(varies)
        self.odd, self.change = odd, change
        self.read: list[int] = []

    def minibatch(self, number: int) -> Minibatch:
        self.read.append(number)
        minibatch = super().minibatch(number)
        return self.change(minibatch) if number == self.odd else minibatch


def feeder(source: Source, per_step: int = 3) -> Feeder:
    return Feeder(source, per_step, CPU, Stopwatch())


def with_input(**tensors: Any) -> Callable[[Minibatch], Minibatch]:
    return lambda minibatch: replace(minibatch, inputs={**minibatch.inputs, **tensors})


def test_each_minibatch_weighs_one_over_the_targets_of_its_step() -> None:
    source, feed = Source(), feeder(Source())
    for step in ((0, 1, 2), (3, 4, 5)):
        total = sum(source.minibatch(number).counts[0] for number in step)
        assert [feed(number).targets[LOSS_WEIGHTS].tolist() for number in step] == [[pytest.approx(1 / total)]] * 3


def test_a_step_without_targets_weighs_one() -> None:
    feed = feeder(Source(0, lambda minibatch: replace(minibatch, counts=(0,))), per_step=1)
    assert feed(0).targets[LOSS_WEIGHTS].tolist() == [1.0]


def test_a_replica_reads_each_step_once_and_keeps_nothing_of_it() -> None:
    """It takes every second minibatch; those of the other replica must not pile up."""
    source = Source()
    feed = feeder(source, per_step=4)
    for number in range(0, 40, 2):
        feed(number)
        assert len(feed._ahead) < 4
    assert source.read == list(range(40))


IDS = torch.zeros((toy.BATCH, toy.LENGTH), dtype=torch.int64)


def end(minibatch: Minibatch) -> Minibatch:
    raise StopIteration


def fail(minibatch: Minibatch) -> Minibatch:
    raise OSError("disk is gone")


def refuse(minibatch: Minibatch) -> Minibatch:
    raise DataError("the corpus has changed")


BAD = {
    "ends": (end, "the data has no minibatch 4 (StopIteration)"),
    "fails": (fail, "the data has no minibatch 4 (OSError: disk is gone)"),
    "refuses": (refuse, "the corpus has changed"),
    "shape": (
        with_input(ids=IDS[:, :5]),
        "ids of minibatch 4 is int64 (3, 5), but the data promised int64 (3, 7)",
    ),
    "dtype": (
        with_input(ids=IDS.int()),
        "ids of minibatch 4 is int32 (3, 7), but the data promised int64 (3, 7)",
    ),
    "no tensor": (with_input(ids=[[1]]), "ids of minibatch 4 is a list, not a tensor"),
    "more": (
        with_input(extra=IDS),
        "minibatch 4 has extra, ids, mask, but the data promised ids, mask: extra",
    ),
    "less": (
        lambda minibatch: replace(minibatch, targets={}),
        "minibatch 4 has nothing, but the data promised labels: labels",
    ),
    "counts": (
        lambda minibatch: replace(minibatch, counts=(1, 1)),
        "minibatches 3 to 5 count targets of more and of fewer losses",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_a_broken_promise_is_named(change: Callable[[Minibatch], Any], message: str) -> None:
    feed = feeder(Source(4, change))
    feed(0)
    with pytest.raises(DataError) as caught:
        feed(3)
    assert caught.value.message == message


def test_where_sizes_vary_only_their_number_is_promised() -> None:
    feed = feeder(Source(4, with_input(ids=IDS[0]), varies=True))
    assert feed(0).inputs["ids"].shape != feed(1).inputs["ids"].shape
    with pytest.raises(DataError, match=r"ids of minibatch 4 is int64 \(7,\), but the data promised int64 \(3, 7\)"):
        feed(3)
