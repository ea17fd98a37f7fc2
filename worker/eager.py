"""torch without what it does around its work: for its compiler, for hooks that nobody sets, against wrong calls.

The compiler it imports by itself only to tell it to leave some functions alone. That import is of 800 modules and costs
a rank half as much again as torch itself, before its first update. The rest is small, and comes with every minibatch.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


@cache
def spare_the_compiler() -> None:
    """Have all functions that are to be left alone believe that the compiler has been told.

    Those are what optimizers call, and what finds shapes on the meta device. Each is wrapped in the same code, which
    looks first whether it has told before. A torch that does it otherwise will import the compiler, as ever.
    """
    for wrapper in gc.get_referrers(Optimizer.zero_grad.__code__):
        if isinstance(wrapper, FunctionType):
            hidden: Any = inspect.getclosurevars(wrapper).nonlocals.get("fn")
            with suppress(AttributeError):
                hidden.__dynamo_disable = hidden


@torch.no_grad()
def step(optimizer: Optimizer, rule: type[Optimizer] | None = None) -> None:
    """As ``optimizer.step()``, without what torch wraps around it for its compiler, its profiler and for hooks.

    ``rule``: the class whose step it is, where that is not the optimizer's own.
    """
    _bare((rule or type(optimizer)).step)(optimizer)


def backward(roots: Sequence[Tensor], seeds: Sequence[Tensor]) -> None:
    """As ``torch.autograd.backward``, without its checks that each seed has the shape and the kind of its root."""
    torch.autograd.graph._engine_run_backward(
        tuple(roots), tuple(seeds), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


@cache
def _bare(method: Callable[..., Any]) -> Any:
    return inspect.unwrap(method)
