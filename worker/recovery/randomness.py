"""States of the random number generators that a rank has, as tensors.

vpipe's own random numbers are keyed by what they are for, so nothing of its own depends on these. A user's layer, data
or optimizer may draw from them all the same.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def states(device: torch.device) -> dict[str, Tensor]:
    """The states of Python's, numpy's and torch's generators, and the device's."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    assert kind == "MT19937" and not isinstance(keys, str)
    found = {
        "random/torch": torch.get_rng_state(),
        "random/python": torch.tensor([version, *words]),
        "random/python/gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "random/numpy": torch.tensor([*keys.tolist(), position, has_gauss]),
        "random/numpy/gauss": torch.tensor([cached], dtype=torch.float64),
    }
    if device.type == "cuda":
        found["random/cuda"] = torch.cuda.get_rng_state(device)
    return found


def restore(found: Mapping[str, Tensor], device: torch.device) -> None:
    """Set the generators to what ``states`` gave; the device's where it is of the same kind."""
    torch.set_rng_state(found["random/torch"])
    version, *words = found["random/python"].tolist()
    gauss = found["random/python/gauss"].tolist()
    random.setstate((version, tuple(words), gauss[0] if gauss else None))
    *keys, position, has_gauss = found["random/numpy"].tolist()
    cached = float(found["random/numpy/gauss"])
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    if device.type == "cuda" and "random/cuda" in found:
        torch.cuda.set_rng_state(found["random/cuda"], device)
