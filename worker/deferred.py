"""Backward in two parts: gradients of inputs now, those of weight matrices later (zero bubble, Qi et al. 2024).

While ``Deferred`` is active, every linear map keeps its input and its output's gradient instead of computing its
weight's gradient; ``run`` does the products later, in the order of the backward. Other parameters are too small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Product(NamedTuple):
    """A weight's share of a gradient, still to be computed."""

    weight: Tensor
    compute: Callable[[], Tensor]


Later = list[Product]
"""In the order of the backward."""


class Deferred(TorchFunctionMode):
    """Within this mode, ``F.linear`` on a leaf weight puts its weight's gradient into ``later``."""

    def __init__(self, later: Later) -> None:
        super().__init__()
        self._later = later

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Replace linear maps; leave all else alone."""
        if func is F.linear:
            x, weight, bias = _arguments(*args, **(kwargs or {}))
            if weight.requires_grad and weight.is_leaf and torch.is_grad_enabled():
                return _Linear.apply(x, weight, bias, self._later)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


def _arguments(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias


class _Linear(torch.autograd.Function):
    """x @ weight.T + bias, with the same products as autograd's own backward, so that no bit differs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, later: Later) -> Tensor:
        ctx.save_for_backward(x)
        # A product takes place in what autocast makes of its operands, and so does its gradient.
        ctx.dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        # The leaf itself: what recomputation gives back for a saved tensor is a detached one, whose .grad nobody reads.
        ctx.weight, ctx.later, ctx.has_bias = weight, later, bias is not None
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        (x,), weight = ctx.saved_tensors, ctx.weight
        flat = gradient.reshape(-1, gradient.shape[-1])
        flat_x = x.detach().reshape(-1, x.shape[-1]).to(ctx.dtype)
        ctx.later.append(Product(weight, lambda: flat_x.t().mm(flat).t().to(weight.dtype)))
        dx = flat.mm(weight.to(ctx.dtype)).view(x.shape).to(x.dtype) if ctx.needs_input_grad[0] else None
        return dx, None, flat.sum(0) if ctx.has_bias else None, None


def _add_gradient(weight: Tensor, gradient: Tensor) -> None:
    weight.grad = gradient.contiguous() if weight.grad is None else weight.grad.add_(gradient)


def run(later: Later, done: Callable[[Tensor], None] | None = None) -> None:
    """Compute what was deferred, in order, and forget it. ``done`` is told of each weight whose gradient is whole."""
    last = {id(product.weight): index for index, product in enumerate(later)}
    with torch.no_grad():
        for index, (weight, compute) in enumerate(later):
            _add_gradient(weight, compute())
            if done is not None and last[id(weight)] == index:
                done(weight)
    later.clear()
