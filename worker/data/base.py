"""What a source of minibatches is: a pure function of the minibatch's number, so that any rank, replica or resumed run
reads the same data for the same number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

IGNORED = -100
"""Label where nothing is to be predicted."""


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor that is not there yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSpec:
        """That of a tensor that is there."""
        return cls(tuple(tensor.shape), tensor.dtype)

    def admits(self, tensor: torch.Tensor, varies: bool) -> bool:
        """Whether ``tensor`` has this dtype and shape; where it ``varies``, as many dimensions."""
        same_shape = tensor.dim() == len(self.shape) if varies else tensor.shape == self.shape
        return tensor.dtype == self.dtype and same_shape

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {self.shape}"


@dataclass(frozen=True)
class Signature:
    """What every minibatch of a source looks like, known without reading any data.

    With ``varies`` the sizes are upper limits: each minibatch has its own.
    """

    inputs: Mapping[str, TensorSpec]
    targets: Mapping[str, TensorSpec]
    varies: bool = False


@dataclass(frozen=True)
class Minibatch:
    """Tensors by name, and for each loss term of the model the number of real targets in them."""

    inputs: Mapping[str, torch.Tensor]
    targets: Mapping[str, torch.Tensor]
    counts: tuple[int, ...]


class Source(Protocol):
    """Minibatches by number, without end: after the last record the next epoch begins, in another order."""

    signature: Signature
    baseline_loss: float
    """Mean loss of always guessing by how frequent each target is, in nats."""

    def minibatch(self, number: int) -> Minibatch:
        """Minibatch ``number`` >= 0: the same tensors whenever and wherever it is asked for."""
        ...


def entropy(counts: NDArray[np.int64]) -> float:
    """In nats: the mean loss of always predicting by these frequencies."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
