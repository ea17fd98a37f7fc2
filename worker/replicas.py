"""Sums over the replicas of a stage, added up in replica order, so that every bit is the same on every one of them.

Gradients go in buckets, each as soon as the backward has finished it. Of a bucket each replica adds up one part and
sends the result to the others: every byte crosses twice, whatever the number of replicas (reduce-scatter and
all-gather, as in ring all-reduce, but with a fixed order of summation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from worker.communication import Address, Communicator, Expected, Pending
from worker.data.base import TensorSpec

GIVEN = "given"
"""Rides along in a sum: how many replicas have each of the tensors."""

MOST_BUCKETS = 32
BUCKET_ELEMENTS = 2**20
"""A bucket is at least this large, 4 MiB, and larger where more than MOST_BUCKETS would be needed."""


def part(stage: int, bucket: int) -> str:
    """What carries a replica's share of a bucket to the one that adds it up."""
    return f"part of gradient bucket {bucket} of stage {stage}"


def total(stage: int, bucket: int) -> str:
    """What carries a part's sum to the other replicas."""
    return f"sum of gradient bucket {bucket} of stage {stage}"


def names(stage: int) -> list[str]:
    """All that the replicas of a stage send each other."""
    return [name(stage, bucket) for bucket in range(MOST_BUCKETS) for name in (part, total)]


@dataclass
class Exchange:
    """One bucket on its way: a part per replica in ``flat``, and what the others are to send."""

    number: int
    flat: Tensor
    views: Mapping[str, Tensor]
    missing: set[str]
    parts: Mapping[int, Pending] = field(default_factory=dict)
    totals: Mapping[int, Pending] = field(default_factory=dict)


class ReplicaGroup:
    """The replicas of one stage, as one of them sees the others.

    Args:
        ranks: all of them, in replica order.
        specs: everything that may be summed, by name; float32. What comes last leaves first, as in a backward.
    """

    def __init__(
        self,
        communicator: Communicator,
        stage: int,
        ranks: range,
        rank: int,
        specs: Mapping[str, TensorSpec],
        device: torch.device,
    ) -> None:
        self._communicator = communicator
        self._stage = stage
        self.ranks = ranks
        self._rank = rank
        self._others = [other for other in ranks if other != rank]
        self._specs = {GIVEN: TensorSpec((len(specs) + 1,), torch.float32), **specs}
        self._device = device
        self._buckets = _buckets({name: _size(spec) for name, spec in self._specs.items()})
        self._exchanges: dict[int, Exchange] = {}

    def __len__(self) -> int:
        return len(self.ranks)

    def give(self, name: str, tensor: Tensor, minibatch: int) -> None:
        """Hand over one tensor ahead of ``sum``; a bucket leaves when it is full.

        Args:
            minibatch: the last of the update, the same on all replicas.
        """
        number = next(number for number, names in enumerate(self._buckets) if name in names)
        exchange = self._exchange(number)
        exchange.views[name].copy_(tensor)
        exchange.missing.discard(name)
        if not exchange.missing:
            self._leave(exchange, minibatch)

    def sum(self, tensors: Mapping[str, Tensor], minibatch: int) -> dict[str, Tensor]:
        """The sums over all replicas, by name. What some of them lack counts as zeros; what all lack is left out.

        Args:
            tensors: all there is here; what was given before is not taken again.
        """
        present = torch.tensor([1.0 if name in tensors else 0.0 for name in self._specs])
        tensors = {**tensors, GIVEN: present}
        for number in range(len(self._buckets)):
            exchange = self._exchange(number)
            for name in exchange.missing & tensors.keys():
                exchange.views[name].copy_(tensors[name])
            if exchange.missing:
                self._leave(exchange, minibatch)
        exchanges, self._exchanges = self._exchanges, {}
        for number in sorted(exchanges):
            self._add_up(exchanges[number], minibatch)
        sums: dict[str, Tensor] = {}
        for number in sorted(exchanges):
            sums |= self._gathered(exchanges[number])
        counts = dict(zip(self._specs, sums[GIVEN].tolist(), strict=True))
        return {name: sums[name] for name, count in counts.items() if count}

    def _exchange(self, number: int) -> Exchange:
        if number not in self._exchanges:
            size = sum(_size(self._specs[name]) for name in self._buckets[number])
            flat = torch.zeros(-(-size // len(self)) * len(self), device=self._device)
            self._exchanges[number] = Exchange(number, flat, self._views(flat, number), set(self._buckets[number]))
        return self._exchanges[number]

    def _leave(self, exchange: Exchange, minibatch: int) -> None:
        """Send the others their parts."""
        exchange.missing = set()
        what, sums = part(self._stage, exchange.number), total(self._stage, exchange.number)
        exchange.parts = {rank: self._post(what, rank, minibatch, exchange) for rank in self._others}
        exchange.totals = {rank: self._post(sums, rank, minibatch, exchange) for rank in self._others}
        for rank in self._others:
            self._communicator.send(self._part_of(exchange, rank), Address(what, self._rank, rank, minibatch))

    def _add_up(self, exchange: Exchange, minibatch: int) -> None:
        """Add up this replica's own part, in replica order, and send the result to the others."""
        own = self._part_of(exchange, self._rank)
        result = torch.zeros_like(own)
        for rank in self.ranks:
            result += own if rank == self._rank else exchange.parts[rank]()
        own.copy_(result)
        what = total(self._stage, exchange.number)
        for rank in self._others:
            self._communicator.send(own, Address(what, self._rank, rank, minibatch))

    def _gathered(self, exchange: Exchange) -> dict[str, Tensor]:
        """The sums of a bucket; in new memory, for the old one may still be on its way."""
        parts = [
            self._part_of(exchange, rank) if rank == self._rank else exchange.totals[rank]() for rank in self.ranks
        ]
        return self._views(torch.cat(parts), exchange.number)

    def _part_of(self, exchange: Exchange, rank: int) -> Tensor:
        return exchange.flat.view(len(self), -1)[self.ranks.index(rank)]

    def _post(self, what: str, source: int, minibatch: int, exchange: Exchange) -> Pending:
        spec = TensorSpec((len(exchange.flat) // len(self),), torch.float32)
        return self._communicator.post(Expected(Address(what, source, self._rank, minibatch), spec))

    def _views(self, flat: Tensor, number: int) -> dict[str, Tensor]:
        views, start = {}, 0
        for name in self._buckets[number]:
            size = _size(self._specs[name])
            views[name] = flat[start : start + size].view(self._specs[name].shape)
            start += size
        return views


def _size(spec: TensorSpec) -> int:
    return torch.Size(spec.shape).numel()


def _buckets(sizes: Mapping[str, int]) -> list[list[str]]:
    """Names from the last layer to the first, which is the order of a backward, in groups that fill a bucket."""
    least = max(BUCKET_ELEMENTS, sum(sizes.values()) // (MOST_BUCKETS - 1))
    buckets: list[list[str]] = [[]]
    filled = 0
    for name in reversed(list(sizes)):
        if filled >= least:
            buckets.append([])
            filled = 0
        buckets[-1].append(name)
        filled += sizes[name]
    return buckets
