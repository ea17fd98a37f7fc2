"""Running statistics and other buffers of layers: what recomputation must leave alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def kept(module: nn.Module) -> Iterator[None]:
    """Within this, ``module`` works on copies of its buffers: what it does to them is forgotten.

    A batch norm counts each minibatch once, however often its layer is computed.
    """
    owned = [(part, name, buffer) for part in module.modules() for name, buffer in part._buffers.items()]
    for part, name, buffer in owned:
        part._buffers[name] = None if buffer is None else buffer.clone()
    try:
        yield
    finally:
        for part, name, buffer in owned:
            part._buffers[name] = buffer
