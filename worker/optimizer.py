"""Update rules, their learning rate over time, and clipping by norm."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from worker.spec.cluster import OptimizerSpec


def build(spec: OptimizerSpec, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer | None:
    """The optimizer of one stage, None for one without parameters.

    Weight decay spares vectors: biases and the parameters of norms.
    """
    matrices = [parameter for parameter in parameters.values() if parameter.dim() > 1]
    vectors = [parameter for parameter in parameters.values() if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": spec.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if not groups:
        return None
    if spec.name == "sgd":
        return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, fused=True)
    if spec.name == "nadam":
        return torch.optim.NAdam(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps, decoupled_weight_decay=True)
    rule = torch.optim.Adam if spec.name == "adam" else torch.optim.AdamW
    return rule(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=True)


def learning_rate(spec: OptimizerSpec, update: int, updates: int) -> float:
    """The rate of update number ``update`` (from 0) of ``updates``: linear warmup, then the chosen course down to 0."""
    if update < spec.warmup_steps:
        return spec.lr * (update + 1) / spec.warmup_steps
    left = (updates - update) / max(1, updates - spec.warmup_steps)
    if spec.schedule == "linear":
        return spec.lr * left
    if spec.schedule == "cosine":
        return spec.lr * 0.5 * (1 - math.cos(math.pi * left))
    return spec.lr


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use ``rate`` from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate
