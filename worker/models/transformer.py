"""Encoder-decoder Transformer for translation (Vaswani et al. 2017) as a list of layers that a cut may fall between.

Norms stand before each branch and at the end of both stacks, which trains without the long warmup that norms behind
need. Source and target share one vocabulary, and both embeddings and the decoder of the head one matrix. Positions are
sines, as published. The encoder's output crosses every cut of the decoder under the name ``memory``.
"""

from __future__ import annotations

import math
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worker.models.base import Layer, Model
from worker.models.parts import MultiHead, NormalStart, dropout, token_loss, token_scores
from worker.spec.data import ParallelSpec, SyntheticSpec
from worker.spec.model import TransformerSpec

Texts = ParallelSpec | SyntheticSpec


def build(spec: TransformerSpec, data: Texts) -> Model:
    """The layers for sentences of at most ``data.sequence_length`` tokens out of ``data.vocab_size``."""
    embed, memory = partial(Embedding, spec, data), ("memory", "source_mask")
    layers = [Layer("source", embed, ("source_ids",), ("memory",))]
    for index in range(spec.num_layers):
        last = index == spec.num_layers - 1
        layers.append(Layer(f"encoder.{index}.attention", partial(Attention, spec), memory, ("memory",)))
        layers.append(
            Layer(f"encoder.{index}.feed_forward", partial(Last if last else FeedForward, spec), *_same("memory"))
        )
    layers.append(Layer("target", embed, ("target_ids",), ("hidden",)))
    for index in range(spec.depth):
        name = f"decoder.{index}"
        layers.append(Layer(f"{name}.attention", partial(CausalAttention, spec), *_same("hidden")))
        layers.append(Layer(f"{name}.cross", partial(CrossAttention, spec), ("hidden", *memory), ("hidden",)))
        layers.append(Layer(f"{name}.feed_forward", partial(FeedForward, spec), *_same("hidden")))
    layers.append(Layer("head", partial(Head, spec, data), ("hidden", "labels"), ("loss",)))
    owner = "source.word.weight"
    return Model(tuple(layers), ("translation",), {"target.word.weight": owner, "head.decoder.weight": owner})


def _same(name: str) -> tuple[tuple[str], tuple[str]]:
    return (name,), (name,)


class Embedding(nn.Module):
    """Words times the root of the width, plus sines of positions: (b, s) -> (b, s, h)."""

    def __init__(self, spec: TransformerSpec, data: Texts) -> None:
        super().__init__()
        self.word = nn.Embedding(data.vocab_size, spec.hidden_size)
        self.dropout = dropout(spec.dropout)

    def reset_parameters(self) -> None:
        """Rows of length about one: they are scaled up here, and decode as they are."""
        nn.init.normal_(self.word.weight, std=self.word.embedding_dim**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """Word and position."""
        width = self.word.embedding_dim
        pairs = torch.arange(0, width, 2, device=ids.device)
        angles = torch.arange(ids.shape[1], device=ids.device)[:, None] * torch.exp(pairs * (-math.log(1e4) / width))
        positions = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]
        return cast(Tensor, self.dropout(self.word(ids) * math.sqrt(width) + positions))


class Attention(NormalStart):
    """Norm, self attention, residual: (b, s, h) and the mask (b, s) -> (b, s, h)."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(spec.hidden_size)
        self.attention = MultiHead(spec.hidden_size, spec.num_heads, spec.dropout)
        self.dropout = dropout(spec.dropout)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Every token looks at the tokens that the mask calls real."""
        normed = self.norm(hidden)
        return cast(Tensor, hidden + self.dropout(self.attention(normed, normed, mask)))


class CausalAttention(Attention):
    """Norm, self attention to earlier tokens, residual: (b, t, h) -> (b, t, h)."""

    def forward(self, hidden: Tensor) -> Tensor:  # type: ignore[override]
        """Padding stands behind all that is predicted, so no mask is needed for it."""
        normed = self.norm(hidden)
        return cast(Tensor, hidden + self.dropout(self.attention(normed, normed, causal=True)))


class CrossAttention(Attention):
    """Norm, attention to the source, residual: (b, t, h), (b, s, h) and the mask (b, s) -> (b, t, h)."""

    def forward(self, hidden: Tensor, memory: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """Every target token looks at the real source tokens."""
        return cast(Tensor, hidden + self.dropout(self.attention(self.norm(hidden), memory, mask)))


class FeedForward(NormalStart):
    """Norm, two linear maps with a relu between, residual: (b, s, h) -> (b, s, h)."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        width = spec.intermediate_size or 4 * spec.hidden_size
        self.norm = nn.LayerNorm(spec.hidden_size)
        self.expand = nn.Linear(spec.hidden_size, width)
        self.contract = nn.Linear(width, spec.hidden_size)
        self.dropout = dropout(spec.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """Each token by itself."""
        return cast(Tensor, hidden + self.dropout(self.contract(F.relu(self.expand(self.norm(hidden))))))


class Last(FeedForward):
    """The encoder's last half layer, with the norm that ends the stack."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__(spec)
        self.last_norm = nn.LayerNorm(spec.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Each token by itself."""
        return cast(Tensor, self.last_norm(super().forward(hidden)))


class Head(NormalStart):
    """Next-token loss: (b, t, h) and labels (b, t) -> (1,), the sum over the labels that are to be predicted."""

    borrowed = "decoder"

    def __init__(self, spec: TransformerSpec, data: Texts) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(spec.hidden_size)
        self.decoder = nn.Linear(spec.hidden_size, data.vocab_size)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., h) -> (..., vocabulary)."""
        return cast(Tensor, self.decoder(self.norm(hidden)))

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy."""
        return token_loss(self.logits(hidden), labels)

    def scores(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Evaluation: how many next tokens were the likeliest, and among the five likeliest."""
        return token_scores(self.logits(hidden), labels)

    def guesses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Translation: the likeliest next token at every place, (b, t)."""
        return self.logits(hidden).argmax(-1)
