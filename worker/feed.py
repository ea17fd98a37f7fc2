"""What stage 0 puts into the pipeline: minibatches of the data, with the weight of each in its step's mean loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from worker.data.base import Minibatch, Signature, Source, TensorSpec
from worker.errors import DataError
from worker.metrics import Stopwatch
from worker.runtime import LOSS_WEIGHTS, Feed


class Feeder:
    """Minibatches by number, one step at a time.

    A step's loss is the mean over all its real targets, not the mean of its minibatches' means; so the whole step is
    read before its first minibatch leaves, and each carries one over the step's number of targets.

    Args:
        minibatches_per_step: 1 under ASP.
        waiting: runs while data is read.
    """

    def __init__(self, source: Source, minibatches_per_step: int, device: torch.device, waiting: Stopwatch) -> None:
        self._source = source
        self._per_step = minibatches_per_step
        self._device = device
        self._waiting = waiting
        self._ahead: dict[int, Feed] = {}

    def __call__(self, number: int) -> Feed:
        """Minibatch ``number``. Raises DataError when the source gives something else than its signature says."""
        with self._waiting:
            if number not in self._ahead:
                self._read_step(number // self._per_step)
            return self._ahead.pop(number)

    def _read_step(self, step: int) -> None:
        numbers = range(step * self._per_step, (step + 1) * self._per_step)
        minibatches = {number: self._source.minibatch(number) for number in numbers}
        for number, minibatch in minibatches.items():
            _check(number, minibatch, self._source.signature)
        totals = [sum(counts) for counts in zip(*(m.counts for m in minibatches.values()), strict=True)]
        weights = torch.tensor([1 / max(1, total) for total in totals], dtype=torch.float32)
        for number, minibatch in minibatches.items():
            targets = {**minibatch.targets, LOSS_WEIGHTS: weights}
            self._ahead[number] = Feed(self._placed(minibatch.inputs), self._placed(targets))

    def _placed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self._device) for name, tensor in tensors.items()}


def _check(number: int, minibatch: Minibatch, signature: Signature) -> None:
    for said, given in ((signature.inputs, minibatch.inputs), (signature.targets, minibatch.targets)):
        found = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in given.items()}
        if found != dict(said):
            raise DataError(f"minibatch {number} is {found}, but the data promised {dict(said)}")
