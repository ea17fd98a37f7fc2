"""What the benchmarks train: layers that compute, layers that only sleep, and data for both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worker import models
from worker.data.base import IGNORED, Minibatch, Signature, TensorSpec
from worker.deferred import Product
from worker.models.base import Layer, Model
from worker.spec.cluster import BertSpec, DataSpec

CLASSES = 64


@dataclass(frozen=True)
class Workload:
    """A model of ``blocks`` equal layers and little behind them, the last of which is the loss; and its data."""

    model: Model
    source: Same
    blocks: int

    def partition(self, stages: int) -> list[int]:
        """Equal blocks for every stage; the last one has the loss too."""
        each = self.blocks // stages
        return [each] * (stages - 1) + [len(self.model.layers) - each * (stages - 1)]


def encoders(count: int = 8, width: int = 256, length: int = 128, batch: int = 8) -> Workload:
    """Real compute: transformer encoder layers and a classifier of every token."""
    build = partial(Encoder, width, width // 64 or 1)
    layers = [Layer(f"encoder.{index}", build, ("hidden",), ("hidden",)) for index in range(count)]
    layers.append(Layer("classifier", partial(nn.Linear, width, CLASSES), ("hidden",), ("logits",)))
    layers.append(Layer("loss", CrossEntropy, ("logits", "labels"), ("loss",)))
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(batch, length, width, generator=generator)
    labels = torch.randint(CLASSES, (batch, length), generator=generator)
    return Workload(Model(tuple(layers)), Same({"hidden": hidden}, labels, labels.numel()), count)


def bert(layers: int, width: int, length: int, batch: int) -> Workload:
    """vpipe's own BERT on random tokens, an eighth of which are to be predicted."""
    data = DataSpec(sequence_length=length, minibatch_size=batch, vocab_size=1024)
    model = models.bert.build(BertSpec(hidden_size=width, num_layers=layers, num_heads=width // 64 or 1), data)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(data.vocab_size, (batch, length), generator=generator)
    inputs = {"input_ids": ids, "segment_ids": torch.zeros_like(ids), "attention_mask": torch.ones_like(ids).bool()}
    labels = torch.where(torch.arange(length) % 8 == 0, ids, IGNORED)
    return Workload(model, Same(inputs, labels, int((labels != IGNORED).sum())), 2 * layers)


def sleepers(
    ranks: int, activation_bytes: int, forward: float = 0.010, input_grad: float = 0.010, weight_grad: float = 0.010
) -> Workload:
    """Emulated compute: so many seconds of sleep per rank and minibatch, in two layers, so that a rank may hold two."""
    build = partial(Sleeper, forward / 2, input_grad / 2, weight_grad / 2)
    layers = [Layer(f"sleeper.{index}", build, ("hidden",), ("hidden",)) for index in range(2 * ranks)]
    layers.append(Layer("loss", FreeLoss, ("hidden", "labels"), ("loss",)))
    hidden, labels = _ready_made((1, activation_bytes // 4)), torch.zeros(1, 1)
    return Workload(Model(tuple(layers)), Same({"hidden": hidden}, labels, 1), 2 * ranks)


class Same:
    """The same minibatch for ever: reading it costs nothing."""

    baseline_loss = 0.0

    def __init__(self, inputs: dict[str, Tensor], labels: Tensor, targets: int) -> None:
        self._minibatch = Minibatch(inputs, {"labels": labels}, (targets,))
        self.signature = Signature({name: _spec(value) for name, value in inputs.items()}, {"labels": _spec(labels)})
        self._wholes: dict[int, tuple[Tensor, Tensor]] = {}

    def minibatch(self, number: int) -> Minibatch:
        """It, whatever the number."""
        return self._minibatch

    def whole(self, minibatches: int) -> tuple[Tensor, Tensor]:
        """The first input and the labels of so many minibatches, each in one tensor; made once."""
        if minibatches not in self._wholes:
            first, labels = next(iter(self._minibatch.inputs.values())), self._minibatch.targets["labels"]
            self._wholes[minibatches] = (torch.cat([first] * minibatches), torch.cat([labels] * minibatches))
        return self._wholes[minibatches]


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tuple(tensor.shape), tensor.dtype)


class Encoder(nn.Module):
    """One transformer encoder layer, norms before, without dropout: (b, s, h) -> (b, s, h)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_map = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Attention of all tokens to all, then each token by itself."""
        batch, length, width = hidden.shape
        projected = self.query_key_value(self.before_attention(hidden)).view(batch, length, 3, self.heads, -1)
        context = F.scaled_dot_product_attention(*projected.permute(2, 0, 3, 1, 4).unbind(0))
        hidden = hidden + self.mix(context.transpose(1, 2).reshape(batch, length, width))
        return cast(Tensor, hidden + self.contract(F.gelu(self.expand(self.before_map(hidden)))))


class CrossEntropy(nn.Module):
    """Logits (b, s, c) and labels (b, s) -> (1,), the sum over all tokens."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """As ``Model`` asks of its last layer."""
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum").reshape(1)


class Sleeper(nn.Module):
    """Sleeps in place of computing, forward and in both parts of the backward; gives what stands ready.

    So only what a runtime itself does costs a core anything, and many ranks can be timed on few cores. Its one weight
    makes autograd, the optimizer and the split of the backward see an ordinary layer.
    """

    def __init__(self, forward: float, input_grad: float, weight_grad: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, 1))
        self.seconds = (forward, input_grad, weight_grad)

    def reset_parameters(self) -> None:
        """One."""
        nn.init.ones_(self.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """(1, n) -> (1, n)."""
        forward, input_grad, weight_grad = (0.0, 0.0, 0.0) if hidden.is_meta else self.seconds
        # A first layer has no input gradient, but a real stage is not idle for that: its other layers have.
        owed = weight_grad if hidden.requires_grad else input_grad + weight_grad
        pulse = F.linear(torch.ones(1, 1, device=hidden.device), self.weight)
        # Where vpipe splits the backward, the map above has put off its weight's gradient; the sleep goes with it.
        later = getattr(pulse.grad_fn, "later", None)
        if later is None:
            pulse = _apply(_SleepBackward, pulse, owed)
        put_off = None if later is None else partial(later.append, Product(self.weight, partial(_slept, owed)))
        x = _apply(_SleepBackward, hidden, input_grad)
        return _apply(_SleepForward, x, pulse, forward, put_off)


class FreeLoss(nn.Module):
    """A loss that costs nothing: (1, n) and labels (1, 1) -> (1,)."""

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Always 0."""
        return _apply(_FreeLoss, hidden)


@lru_cache
def _ready_made(shape: tuple[int, ...], device: str = "cpu") -> Tensor:
    return torch.ones(shape, device=device)


def _fresh(like: Tensor) -> Tensor:
    """Another tensor on what stands ready: autograd may take it for its own without a copy."""
    return _ready_made(tuple(like.shape), like.device.type).detach()


def _sleep(seconds: float) -> None:
    """Not at all for 0: the kernel would sleep for as long as its timers are slack, and the processor go idle."""
    if seconds:
        time.sleep(seconds)


def _slept(seconds: float) -> Tensor:
    """In place of a weight's gradient."""
    _sleep(seconds)
    return torch.zeros(1, 1)


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    return cast(Tensor, function.apply(*arguments))  # type: ignore[no-untyped-call]


class _SleepForward(torch.autograd.Function):
    """Sleeps forward; its backward costs nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pulse: Tensor, seconds: float, put_off: Callable[[], None] | None) -> Tensor:
        ctx.put_off = put_off
        _sleep(seconds)
        return _fresh(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        if ctx.put_off is not None:
            ctx.put_off()
        return _fresh(gradient), torch.ones(1, 1), None, None


class _SleepBackward(torch.autograd.Function):
    """Sleeps backward; its forward costs nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        _sleep(ctx.seconds)
        return _fresh(gradient), None


class _FreeLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        ctx.shape = hidden.shape
        return hidden.new_zeros(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _ready_made(tuple(ctx.shape), gradient.device.type).detach()
