"""A model as a list of layers, each with the names of the tensors it takes and gives.

Names, not positions, say what flows: a tensor crosses every cut between the layer that gives it and the last layer that
takes it. So a mask from the data, or a skip connection over several stages, needs nothing but its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True)
class Layer:
    """The smallest unit a cut may fall between.

    ``build`` makes the module; it is called under ``torch.device("meta")``, so it must not depend on values. The module
    takes the tensors named by ``inputs``, in order, and returns those named by ``outputs`` (one tensor, or a tuple).
    Its random initial values come from ``reset_parameters`` of itself or, without that, of each of its submodules.
    Full parameter names are ``{layer name}.{name in the module}`` and are the same whatever the partition.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """Layers in order; the last one is the loss.

    The last layer takes targets of the data among its inputs and returns one float32 tensor of shape (terms,): for each
    name in ``losses`` the *sum* of that loss over its targets. The runtime divides by the number of targets.

    ``tied`` maps the full name of a borrowed parameter to the full name of its owner, which stands in an earlier layer.
    The borrowing module has a parameter of the same shape under that name; it is never initialised or optimised itself.
    """

    layers: tuple[Layer, ...]
    losses: tuple[str, ...] = ("loss",)
    tied: Mapping[str, str] = field(default_factory=dict)
