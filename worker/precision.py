"""Arithmetic of layers: float32 throughout, or 16 bits inside layers and between them with float32 weights.

Under bf16 and fp16 a layer runs in torch's autocast, and every floating-point tensor it gives is rounded to 16 bits, in
the middle of a stage as at a cut: so the partition changes no bit, and half the bytes travel and stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cache

import torch
from torch import Tensor

from worker.trace import NOTHING

LOSS_SCALE = "loss scale"
"""Under fp16 this float32 tensor of shape (1,) crosses every cut with a minibatch: the factor of its gradients."""

SMALL = 8192
"""Numbers in a tensor up to which a look at each of them costs less than a call of its own for their sum."""

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The dtype between layers by ``precision``; None: as the layers give it."""


def arithmetic(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """What a layer runs in. Weights are cast anew each time, for they may be another version."""
    return NOTHING if dtype is None else torch.autocast(device.type, dtype, cache_enabled=False)


def rounded(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A layer's output as it travels on."""
    return value if dtype is None or not value.is_floating_point() else value.to(dtype)


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the last that has NaN or infinity in it, which a backward reaches first; None if none has.

    Small ones are looked at together, by what torch's own loss scaling uses: most of a model's gradients are small, and
    a GPU is waited for once. Of a large one on a CPU a sum costs less. Only where something is odd, all are looked at.
    """
    together, total = [], 0.0
    for tensor in tensors.values():
        if tensor.numel() <= SMALL or tensor.is_cuda:
            together.append(tensor)
        else:
            total += float(tensor.sum())
    if math.isfinite(total) and not (together and _has_odd(together)):
        return None
    return next((name for name in reversed(list(tensors)) if not bool(tensors[name].isfinite().all())), None)


def _has_odd(tensors: list[Tensor]) -> bool:
    found, one = _flag(tensors[0].device)
    found.zero_()
    torch._amp_foreach_non_finite_check_and_unscale_(tensors, found, one)
    return bool(found)


@cache
def _flag(device: torch.device) -> tuple[Tensor, Tensor]:
    """Of no dimension: what is set to one where a number is not finite, and the factor by which nothing changes."""
    return torch.zeros((), device=device), torch.ones((), device=device)


class LossScaler:
    """The factor that keeps fp16 gradients from vanishing (dynamic loss scaling, Micikevicius et al. 2018).

    The first stage keeps it, for an overflow anywhere behind it reaches its gradients, and sends it along with each
    minibatch. It is a power of two, so that multiplying and dividing by it rounds nothing.
    """

    GROWTH_INTERVAL = 2000
    """Updates without an overflow after which the factor doubles."""

    def __init__(self) -> None:
        self.factor = 2.0**16
        self._good = 0

    def state(self) -> dict[str, float]:
        """All it remembers, for a checkpoint."""
        return {"factor": self.factor, "good": self._good}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from what ``state`` gave."""
        self.factor, self._good = float(state["factor"]), int(state["good"])

    def seen(self, is_finite: bool) -> None:
        """Take in how an update went."""
        self._good = self._good + 1 if is_finite else 0
        if not is_finite:
            self.factor = max(1.0, self.factor / 2)
        elif self._good % self.GROWTH_INTERVAL == 0:
            self.factor *= 2
