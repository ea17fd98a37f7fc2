"""GPT-2 as published (Radford et al. 2019; pre-norm, tanh gelu) as a list of layers that a cut may fall between.

``embeddings``, then ``block.I.attention`` and ``block.I.feed_forward`` for each block, then ``head`` with the last
norm, whose decoder borrows the word embedding. Matrices start normal(0, 0.02), those that end a residual branch with
that over the root of twice the number of blocks.
"""

from __future__ import annotations

import math
from functools import partial
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from worker.models.base import Layer, Model
from worker.models.parts import INITIAL_DEVIATION, NormalStart, dropout, token_loss, token_scores
from worker.spec.data import DataSpec, SyntheticSpec
from worker.spec.model import Gpt2Spec

Texts = DataSpec | SyntheticSpec


def build(spec: Gpt2Spec, data: Texts) -> Model:
    """The layers for sequences of ``data.sequence_length`` tokens out of ``data.vocab_size``."""
    layers = [Layer("embeddings", partial(Embeddings, spec, data), ("input_ids",), ("hidden",))]
    for index in range(spec.num_layers):
        layers.append(Layer(f"block.{index}.attention", partial(Attention, spec), ("hidden",), ("hidden",)))
        layers.append(Layer(f"block.{index}.feed_forward", partial(FeedForward, spec), ("hidden",), ("hidden",)))
    layers.append(Layer("head", partial(Head, spec, data), ("hidden", "labels"), ("loss",)))
    return Model(tuple(layers), ("causal_lm",), {"head.decoder.weight": "embeddings.word.weight"})


class Embeddings(NormalStart):
    """Sum of word and position embeddings: (b, s) -> (b, s, h)."""

    def __init__(self, spec: Gpt2Spec, data: Texts) -> None:
        super().__init__()
        self.word = nn.Embedding(data.vocab_size, spec.hidden_size)
        self.position = nn.Embedding(data.sequence_length, spec.hidden_size)
        self.dropout = dropout(spec.dropout)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Word and position."""
        return cast(Tensor, self.dropout(self.word(input_ids) + self.position.weight[: input_ids.shape[1]]))


class Branch(NormalStart):
    """A residual branch: how its last matrix, ``output``, starts."""

    output: nn.Linear

    def __init__(self, spec: Gpt2Spec) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(spec.hidden_size)
        self.dropout = dropout(spec.dropout)
        self._deviation = INITIAL_DEVIATION / math.sqrt(2 * spec.num_layers)

    def reset_parameters(self) -> None:
        """As all, but the last matrix smaller: residuals add up."""
        super().reset_parameters()
        nn.init.normal_(self.output.weight, std=self._deviation)


class Attention(Branch):
    """Norm, self attention to earlier tokens, residual: (b, s, h) -> (b, s, h)."""

    def __init__(self, spec: Gpt2Spec) -> None:
        super().__init__(spec)
        self.heads, self.share = spec.num_heads, spec.dropout
        self.query_key_value = nn.Linear(spec.hidden_size, 3 * spec.hidden_size)
        self.output = nn.Linear(spec.hidden_size, spec.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Every token looks at itself and those before it."""
        batch, length, width = hidden.shape
        projected = self.query_key_value(self.norm(hidden)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
        share = self.share if self.training else 0.0
        context = F.scaled_dot_product_attention(query, key, value, dropout_p=share, is_causal=True)
        return cast(Tensor, hidden + self.dropout(self.output(context.transpose(1, 2).reshape(batch, length, width))))


class FeedForward(Branch):
    """Norm, two linear maps with a gelu between, residual: (b, s, h) -> (b, s, h)."""

    def __init__(self, spec: Gpt2Spec) -> None:
        super().__init__(spec)
        width = spec.intermediate_size or 4 * spec.hidden_size
        self.expand = nn.Linear(spec.hidden_size, width)
        self.output = nn.Linear(width, spec.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Each token by itself."""
        inner = F.gelu(self.expand(self.norm(hidden)), approximate="tanh")
        return cast(Tensor, hidden + self.dropout(self.output(inner)))


class Head(NormalStart):
    """Next-token loss: (b, s, h) and labels (b, s) -> (1,), the sum over the labels that are to be predicted."""

    borrowed = "decoder"

    def __init__(self, spec: Gpt2Spec, data: Texts) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(spec.hidden_size)
        self.decoder = nn.Linear(spec.hidden_size, data.vocab_size, bias=False)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., h) -> (..., vocabulary)."""
        return cast(Tensor, self.decoder(self.norm(hidden)))

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy."""
        return token_loss(self.logits(hidden), labels)

    def scores(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Evaluation: how many next tokens were the likeliest, and among the five likeliest."""
        return token_scores(self.logits(hidden), labels)
