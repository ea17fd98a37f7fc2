"""Slots: memory that two ranks of one machine map, and tensors that lie in it.

The sender copies a tensor into a free slot; the receiver's tensor is the slot itself, which is free again when the last
use of that tensor ends.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

FREE, TAKEN = 0, 1


class Slot:
    """Memory shared by two ranks; the byte behind it says whether the receiver still needs it."""

    def __init__(self, number: int, size: int, descriptor: int) -> None:
        self.number = number
        self.size = size
        # torch's own mapping keeps no descriptor open, as Python's would: many slots may be in flight.
        path = f"/proc/self/fd/{descriptor}"
        self._memory = torch.from_file(path, shared=True, size=size + 1, dtype=torch.uint8)
        self._start = self._memory.data_ptr()
        self._state = ctypes.c_ubyte.from_address(self._start + size)

    @property
    def is_free(self) -> bool:
        """Whether nobody needs what is in it."""
        return self._state.value == FREE

    def write(self, tensor: Tensor) -> None:
        """Copy ``tensor`` into it, and keep it until the receiver lets go."""
        if tensor.is_contiguous():  # by torch's own means it would cost four calls, each dear on a processor just woken
            ctypes.memmove(self._start, tensor.data_ptr(), tensor.nbytes)
        else:
            self._memory[: tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        self._state.value = TAKEN

    def read(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The tensor in it, in place. With its last use the slot is free."""
        use = _use(math.prod(shape) * dtype.itemsize).from_address(self._start)
        use.slot = self
        return torch.frombuffer(use, dtype=dtype).view(shape)

    def free(self) -> None:
        """Say that nobody needs what is in it any more."""
        self._state.value = FREE


@cache
def _use(size: int) -> Any:
    """What a tensor of ``size`` bytes in a slot refers to. While it lives, the slot is taken and its memory mapped."""

    class Use(ctypes.c_char * size):  # type: ignore[misc]  # ctypes makes its array types while a program runs
        slot: Slot

        def __del__(self) -> None:
            self.slot.free()

    return Use
