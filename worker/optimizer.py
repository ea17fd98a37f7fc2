"""Which update rule a stage has, and its learning rate over time."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import nn
from torch.optim import Optimizer

from worker.flow import Flow
from worker.spec.cluster import OptimizerSpec
from worker.update_rules import FusedAdam, Group, Lamb, Muon

MUON_MOMENTUM = 0.95


def outer(flow: Flow) -> frozenset[str]:
    """Full names of the parameters that are not of hidden layers: embeddings, and the last layer that has any."""
    embeddings = {
        f"{path}.weight"
        for layer, module in zip(flow.names, flow.modules, strict=True)
        for path, part in module.named_modules(prefix=layer)
        if isinstance(part, nn.Embedding)
    }
    last = max(flow.holders.values(), default=None)
    return frozenset(embeddings | {name for name, layer in flow.holders.items() if layer == last})


def build(
    spec: OptimizerSpec, parameters: Mapping[str, nn.Parameter], not_hidden: Collection[str] = ()
) -> Optimizer | None:
    """The optimizer of one stage, None for one without parameters.

    Every rule updates a parameter by that parameter and its own gradients alone, so the partition changes nothing.
    Weight decay spares vectors: biases and the parameters of norms.

    Args:
        not_hidden: names of matrices that Muon leaves to AdamW, as ``outer`` gives them.
    """
    if spec.name == "muon":
        return _muon(spec, parameters, not_hidden)
    groups = _groups(spec, parameters.values())
    if not groups:
        return None
    if spec.name == "sgd":
        momentum = spec.momentum or 0.0
        return torch.optim.SGD(groups, lr=spec.lr, momentum=momentum, nesterov=spec.nesterov, fused=True)
    if spec.name == "nadam":
        return torch.optim.NAdam(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps, decoupled_weight_decay=True)
    if spec.name == "lamb":
        return Lamb(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps)
    return FusedAdam(groups, spec.lr, spec.betas, spec.eps, decouples=spec.name == "adamw")


def learning_rate(spec: OptimizerSpec, update: int, updates: int, replica_ratio: float = 1.0, delay: int = 0) -> float:
    """The rate of update number ``update`` (from 0) of ``updates``: linear warmup, then the chosen course.

    Args:
        replica_ratio: the stage's replicas over those of the first stage; counts where the rate is scaled by it.
        delay: of the stage, in updates; counts where the rate is PipeMare's (Yang et al. 2021, T1): it is divided by
            the delay, the less so the more updates are done.
    """
    rate = spec.lr * _course(spec, update, updates)
    if spec.scale_lr_by_replicas:
        rate *= replica_ratio
    if spec.pipemare is not None:
        rate /= max(1, delay) ** max(0.0, 1 - update / spec.pipemare)
    return rate


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Use ``rate`` from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def _course(spec: OptimizerSpec, update: int, updates: int) -> float:
    """The share of the highest rate that an update has: 0 to 1, also behind the end of the run."""
    if update < spec.warmup_steps:
        return (update + 1) / spec.warmup_steps
    done, whole = update - spec.warmup_steps, max(1, updates - spec.warmup_steps)
    left = max(0.0, (whole - done) / whole)
    if spec.schedule == "step":
        return float(spec.decay ** (done // (spec.decay_every or whole)))
    if spec.schedule == "linear":
        return left
    if spec.schedule == "polynomial":
        return float(left**spec.power)
    if spec.schedule == "cosine":
        return 0.5 * (1 - math.cos(math.pi * left))
    if spec.schedule == "exponential":
        return float(spec.decay ** (done / (spec.decay_every or whole)))
    if spec.schedule == "inverse_sqrt":
        peak = max(1, spec.warmup_steps)
        return math.sqrt(peak / (peak + done))
    return 1.0


def _groups(spec: OptimizerSpec, parameters: Iterable[nn.Parameter]) -> list[Group]:
    """Matrices with weight decay and vectors without, where there are any."""
    every = list(parameters)
    matrices = {"params": [p for p in every if p.dim() > 1], "weight_decay": spec.weight_decay}
    vectors = {"params": [p for p in every if p.dim() <= 1], "weight_decay": 0.0}
    return [group for group in (matrices, vectors) if group["params"]]


def _muon(spec: OptimizerSpec, parameters: Mapping[str, nn.Parameter], not_hidden: Collection[str]) -> Optimizer | None:
    hidden = {name: p for name, p in parameters.items() if p.dim() == 2 and name not in not_hidden}
    others = [p for name, p in parameters.items() if name not in hidden]
    if not parameters:
        return None
    momentum = MUON_MOMENTUM if spec.momentum is None else spec.momentum
    return Muon(_groups(spec, hidden.values()), _groups(spec, others), spec.lr, momentum, spec.betas, spec.eps)
