"""Recomputation: a layer keeps its inputs alone, and runs again when the backward asks for what it would have saved.

Activation checkpointing (Chen et al. 2016), by autograd's own hooks. torch.utils.checkpoint does the same, and restores
random numbers and autocast besides, which layers here do by themselves; it needs torch's compiler to be there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from worker.data.base import TensorSpec
from worker.errors import ModelError

Outputs = tuple[Tensor, ...]


def recomputed(layer: str, first: Callable[..., Outputs], again: Callable[..., Outputs], *inputs: Tensor) -> Outputs:
    """What ``first`` gives for ``inputs``; ``again`` must do the same operations, and runs in the backward.

    The backward raises ModelError, which names ``layer``, where ``again`` does others.
    """
    saved = _Saved(layer, again, inputs)
    with saved_tensors_hooks(saved.leave_out, saved.fetch):
        return first(*inputs)


class _Enough(Exception):
    """The last tensor that anybody will ask for is there: what would come behind it need not run."""


class _Saved:
    """What one run of a layer saved for its backward, by number: nothing, until the first is asked for."""

    def __init__(self, layer: str, again: Callable[..., Outputs], inputs: tuple[Tensor, ...]) -> None:
        self._layer = layer
        self._again = again
        self._inputs = inputs
        self._specs: list[TensorSpec] = []
        self._found: dict[int, Tensor] = {}

    def leave_out(self, tensor: Tensor) -> int:
        """The number of a tensor that the first run would save."""
        self._specs.append(TensorSpec.of(tensor))
        return len(self._specs) - 1

    def fetch(self, number: int) -> Tensor:
        """The tensor, which the second run has made. It is asked for once, and then only autograd holds it."""
        if number not in self._found:
            self._run_again()
        return self._found.pop(number)

    def _run_again(self) -> None:
        found: list[Tensor] = []

        def keep(tensor: Tensor) -> None:
            found.append(tensor.detach())
            if len(found) == len(self._specs):
                raise _Enough

        with suppress(_Enough), torch.enable_grad(), saved_tensors_hooks(keep, _unasked):
            self._again(*self._inputs)
        if self._specs != [TensorSpec.of(tensor) for tensor in found]:
            raise ModelError(
                f"layer {self._layer} did other things when it was recomputed than the first time",
                "it must do the same whenever it meets a minibatch; or set recompute_ratio so that it is left out",
            )
        self._found = dict(enumerate(found))


def _unasked(_: None) -> NoReturn:
    raise AssertionError("the graph of a second run has no backward")
