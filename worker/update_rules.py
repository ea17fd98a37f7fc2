"""Update rules that torch lacks, or has in part or slowly: Adam, LAMB, and Muon with AdamW beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from worker import eager

Group = dict[str, Any]
"""Parameters under ``params``, and settings of their own."""


class FusedAdam(Adam):
    """torch's fused Adam (Kingma and Ba 2015) or AdamW: its state and its kernel, bit for bit, called directly.

    Under ASP every minibatch has an update, and around the kernel torch sorts, checks and wraps for cases that do not
    occur here: parameters are real, dense, float32 and on one device.

    Args:
        groups: each with a ``weight_decay``.
        decouples: whether the decay is AdamW's (Loshchilov and Hutter 2019).
    """

    def __init__(
        self, groups: Sequence[Group], lr: float, betas: tuple[float, float], eps: float, decouples: bool
    ) -> None:
        super().__init__(groups, lr, betas, eps, fused=True, decoupled_weight_decay=decouples)
        self._kernel = torch._fused_adamw_ if decouples else torch._fused_adam_

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nobody here has a closure
        """Update every parameter that has a gradient."""
        chosen = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        states = [[self.state[p] for p in parameters] for parameters in chosen]
        if not all(map(all, states)):
            eager.step(self, Adam)  # which makes the state, and refuses what it cannot take
            return
        for group, parameters, known in zip(self.param_groups, chosen, states, strict=True):
            if parameters:
                self._update(group, parameters, known)

    def _update(self, group: Group, parameters: list[Any], states: list[dict[str, Tensor]]) -> None:
        steps, (beta1, beta2) = [state["step"] for state in states], group["betas"]
        torch._foreach_add_(steps, 1)
        self._kernel(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


class Lamb(Optimizer):
    """Adam whose step on each matrix is as long as the matrix itself, times the rate (LAMB, You et al. 2020).

    Vectors take Adam's step as it is, as in the authors' code: a bias starts at zero and would stay there. The norm of
    all gradients is not limited here; ``clip_grad_norm`` does that.

    Args:
        groups: each with a ``weight_decay``.
    """

    def __init__(self, groups: Sequence[Group], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nobody here has a closure
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    direction = self._direction(parameter, parameter.grad, group)
                    if parameter.dim() > 1:
                        direction.mul_(_trust(parameter, direction))
                    parameter.add_(direction, alpha=-group["lr"])

    def _direction(self, parameter: Tensor, gradient: Tensor, group: Group) -> Tensor:
        """Adam's step with decoupled weight decay, before the rate."""
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        first: Tensor = state["exp_avg"].lerp_(gradient, 1 - beta1)
        second: Tensor = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        updates = float(state["step"])
        scale = (second / (1 - beta2**updates)).sqrt_().add_(group["eps"])
        direction: Tensor = (first / (1 - beta1**updates)).div_(scale)
        direction.add_(parameter, alpha=group["weight_decay"])
        return direction


def _trust(parameter: Tensor, direction: Tensor) -> Tensor:
    """The trust ratio as a tensor of no dimension; 1 where one of the two norms is zero."""
    own, other = torch.linalg.vector_norm(parameter), torch.linalg.vector_norm(direction)
    return torch.where((own > 0) & (other > 0), own / other, torch.ones_like(own))


class Muon(Optimizer):
    """Muon for matrices of hidden layers and AdamW for all else, as one optimizer.

    Muon's steps get the length that AdamW's have (Moonshot's rule), so that one rate and one decay serve both.

    Args:
        hidden: matrices; ``others``: everything else. Each with a ``weight_decay``; either may be empty.
        momentum: of Muon, with Nesterov's look ahead; ``betas`` and ``eps``: of AdamW.
    """

    def __init__(
        self,
        hidden: Sequence[Group],
        others: Sequence[Group],
        lr: float,
        momentum: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        self._rules: list[Optimizer] = []
        if hidden:
            self._rules.append(torch.optim.Muon(hidden, lr=lr, momentum=momentum, adjust_lr_fn="match_rms_adamw"))
        if others:
            self._rules.append(FusedAdam(others, lr, betas, eps, decouples=True))
        super().__init__([group for rule in self._rules for group in rule.param_groups], {})

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nobody here has a closure
        """Update every parameter that has a gradient."""
        start = 0
        for rule in self._rules:
            # Groups and state are this optimizer's own, so that what is loaded into it reaches the rules.
            end = start + len(rule.param_groups)
            rule.param_groups, rule.state = self.param_groups[start:end], self.state
            eager.step(rule)
            start = end
