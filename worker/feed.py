"""What stage 0 puts into the pipeline: minibatches of the data, with the weight of each in its step's mean loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from worker.data.base import Minibatch, Source, TensorSpec
from worker.errors import DataError, VpipeError
from worker.runtime import LOSS_WEIGHTS, Feed
from worker.trace import Stopwatch


class Feeder:
    """Minibatches by number, one step at a time.

    A step's loss is the mean over all its real targets, not the mean of its minibatches' means; so the whole step is
    read before its first minibatch leaves, and each carries one over the step's number of targets.

    Args:
        minibatches_per_step: 1 under ASP.
        waiting: runs while data is read.
        offset: of the data's number to the run's, for a run that was resumed with steps of another size.
    """

    def __init__(
        self, source: Source, minibatches_per_step: int, device: torch.device, waiting: Stopwatch, offset: int = 0
    ) -> None:
        self._source = source
        self._offset = offset
        self._per_step = minibatches_per_step
        self._device = device
        self._waiting = waiting
        self._ahead: dict[int, Feed] = {}
        self._weights: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, number: int) -> Feed:
        """Minibatch ``number``.

        Raises DataError when the source fails, or gives something else than its signature says.
        """
        with self._waiting.during("data", "", number):
            if number not in self._ahead:
                self._read_step(number // self._per_step)
            return self._ahead.pop(number)

    def _read_step(self, step: int) -> None:
        numbers = range(step * self._per_step, (step + 1) * self._per_step)
        minibatches = {number: read(self._source, number + self._offset) for number in numbers}
        if len({len(minibatch.counts) for minibatch in minibatches.values()}) > 1:
            raise DataError(f"minibatches {numbers[0]} to {numbers[-1]} count targets of more and of fewer losses")
        totals = tuple(sum(counts) for counts in zip(*(m.counts for m in minibatches.values()), strict=True))
        weights = self._one_over(totals)
        # A step's minibatches that are left over belong to other replicas.
        self._ahead = {
            number: Feed(self._placed(minibatch.inputs), {**self._placed(minibatch.targets), LOSS_WEIGHTS: weights})
            for number, minibatch in minibatches.items()
        }

    def _one_over(self, totals: tuple[int, ...]) -> Tensor:
        """The same tensor as for the step before where the numbers are the same: most steps have as many targets."""
        if totals not in self._weights:
            weights = torch.tensor([1 / max(1, total) for total in totals], dtype=torch.float32)
            self._weights = {totals: weights.to(self._device)}
        return self._weights[totals]

    def _placed(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if self._device.type == "cpu":
            return tensors
        return {name: tensor.to(self._device) for name, tensor in tensors.items()}


def read(source: Source, number: int) -> Minibatch:
    """Minibatch ``number`` as the signature promises it. Raises DataError."""
    try:
        minibatch = source.minibatch(number)
    except VpipeError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        hint = "a source has no end: after its last record it begins again"
        raise DataError(f"the data has no minibatch {number} ({reason})", hint) from error
    signature = source.signature
    for promised, given in ((signature.inputs, minibatch.inputs), (signature.targets, minibatch.targets)):
        _check(number, promised, given, signature.varies)
    return minibatch


def _check(number: int, promised: Mapping[str, TensorSpec], given: Mapping[str, Tensor], varies: bool) -> None:
    if promised.keys() != given.keys():
        odd = min(promised.keys() ^ given.keys())
        raise DataError(f"minibatch {number} has {_names(given)}, but the data promised {_names(promised)}: {odd}")
    for name, spec in promised.items():
        value = given[name]
        if not isinstance(value, Tensor):
            raise DataError(f"{name} of minibatch {number} is a {type(value).__name__}, not a tensor")
        if not spec.admits(value, varies):
            raise DataError(f"{name} of minibatch {number} is {TensorSpec.of(value)}, but the data promised {spec}")


def _names(tensors: Mapping[str, object]) -> str:
    return ", ".join(sorted(tensors)) or "nothing"
