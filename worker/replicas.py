"""Sums over the replicas of a stage, added up in replica order, so that every bit is the same on every one of them.

Each replica adds up one part of the tensors and sends the result to the others: every byte crosses twice, whatever the
number of replicas (reduce-scatter and all-gather, as in ring all-reduce, but with a fixed order of summation).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from worker.communication import Address, Communicator, Expected, Pending
from worker.data.base import TensorSpec

PART, SUM = "part of a replica's gradients", "sum of a part over replicas"


class ReplicaGroup:
    """The replicas of one stage, as one of them sees the others.

    Args:
        specs: everything that may be summed, by name; float32.
    """

    def __init__(
        self, communicator: Communicator, ranks: range, rank: int, specs: Mapping[str, TensorSpec], device: torch.device
    ) -> None:
        self._communicator = communicator
        self._ranks = ranks
        self._rank = rank
        self._specs = specs
        self._device = device
        size = sum(torch.Size(spec.shape).numel() for spec in specs.values())
        self._part = -(-size // len(ranks))

    def __len__(self) -> int:
        return len(self._ranks)

    def sum(self, tensors: Mapping[str, Tensor], minibatch: int) -> dict[str, Tensor]:
        """The sums over all replicas, by name. A name that is missing here counts as zeros.

        Args:
            minibatch: the last of the update, the same on all replicas.
        """
        others = [rank for rank in self._ranks if rank != self._rank]
        given = {rank: self._post(PART, rank, minibatch) for rank in others}
        summed = {rank: self._post(SUM, rank, minibatch) for rank in others}
        parts = dict(zip(self._ranks, self._packed(tensors).view(len(self._ranks), -1), strict=True))
        for rank in others:
            self._communicator.send(parts[rank], Address(PART, self._rank, rank, minibatch))
        total = torch.zeros_like(parts[self._rank])
        for rank in self._ranks:
            total += parts[rank] if rank == self._rank else given[rank].wait()
        for rank in others:
            self._communicator.send(total, Address(SUM, self._rank, rank, minibatch))
        return self._unpacked(torch.cat([total if r == self._rank else summed[r].wait() for r in self._ranks]))

    def _post(self, what: str, source: int, minibatch: int) -> Pending:
        spec = TensorSpec((self._part,), torch.float32)
        return self._communicator.post(Expected(Address(what, source, self._rank, minibatch), spec))

    def _packed(self, tensors: Mapping[str, Tensor]) -> Tensor:
        flat = torch.zeros(self._part * len(self._ranks), device=self._device)
        for name, view in self._unpacked(flat).items():
            if name in tensors:
                view.copy_(tensors[name])
        return flat

    def _unpacked(self, flat: Tensor) -> dict[str, Tensor]:
        views, start = {}, 0
        for name, spec in self._specs.items():
            size = torch.Size(spec.shape).numel()
            views[name] = flat[start : start + size].view(spec.shape)
            start += size
        return views
