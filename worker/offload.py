"""Activations that wait for their backward in host memory: they cost copies, where recomputation costs a forward.

On a GPU the copies go through pinned memory and in the order of its stream, so that the host waits for none of them (as
vDNN has it, Rhu et al. 2016); between CPUs they are plain copies, of use only to rehearse.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

SMALLEST = 64 * 1024
"""Bytes below which a copy costs more than the memory is worth."""


class Offloaded(saved_tensors_hooks):
    """Within this, what autograd saves of a forward is kept in host memory, and comes back when its backward asks.

    Args:
        stay: tensors that are held anyway, such as weights: what shares memory with one of them is left where it is.
    """

    def __init__(self, stay: Iterable[Tensor]) -> None:
        held = {each.untyped_storage().data_ptr() for each in stay}

        def pack(tensor: Tensor) -> Tensor | _Away:
            if tensor.nbytes < SMALLEST or tensor.untyped_storage().data_ptr() in held:
                return tensor
            return _Away(tensor)

        super().__init__(pack, lambda kept: kept.back() if isinstance(kept, _Away) else kept)


class _Away:
    """A copy of a tensor in host memory, pinned where the tensor is on a GPU."""

    def __init__(self, tensor: Tensor) -> None:
        self._device = tensor.device
        self._copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        self._copy.copy_(tensor, non_blocking=True)

    def back(self) -> Tensor:
        """The tensor, on its device."""
        return self._copy.to(self._device, non_blocking=True)
