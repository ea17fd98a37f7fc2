"""Arithmetic of layers: float32 throughout, or 16 bits inside layers and between them with float32 weights.

Under bf16 and fp16 a layer runs in torch's autocast, and every floating-point tensor it gives is rounded to 16 bits, in
the middle of a stage as at a cut: so the partition changes no bit, and half the bytes travel and stay.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The dtype between layers by ``precision``; None: as the layers give it."""


def arithmetic(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """What a layer runs in. Weights are cast anew each time, for they may be another version."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype, cache_enabled=False)


def rounded(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A layer's output as it travels on."""
    return value if dtype is None or not value.is_floating_point() else value.to(dtype)
