"""BERT as published (Devlin et al. 2019; post-norm, erf gelu) as a list of layers that a cut may fall between.

``embeddings``, then ``encoder.I.attention`` and ``encoder.I.feed_forward`` for each encoder layer, then ``head``. The
decoder of the head borrows the word embedding. Matrices and embeddings, the [PAD] row included, start normal(0, 0.02).
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worker.data.base import IGNORED
from worker.models.base import Layer, Model
from worker.models.parts import NormalStart, dropout, token_scores
from worker.spec.data import DataSpec, Hdf5Spec, SyntheticSpec
from worker.spec.model import BertSpec

Texts = DataSpec | Hdf5Spec | SyntheticSpec

NORM_EPSILON = 1e-12
SEGMENTS = 2


def build(spec: BertSpec, data: Texts) -> Model:
    """The layers for sequences of ``data.sequence_length`` tokens out of ``data.vocab_size``."""
    layers = [Layer("embeddings", partial(Embeddings, spec, data), ("input_ids", "segment_ids"), ("hidden",))]
    for index in range(spec.num_layers):
        attention, feed_forward = f"encoder.{index}.attention", f"encoder.{index}.feed_forward"
        layers.append(Layer(attention, partial(Attention, spec), ("hidden", "attention_mask"), ("hidden",)))
        layers.append(Layer(feed_forward, partial(FeedForward, spec), ("hidden",), ("hidden",)))
    tied = {"head.decoder.weight": "embeddings.word.weight"}
    if spec.pairs:
        layers.append(Layer("head", partial(OrderHead, spec, data), ("hidden", "labels", "order_labels"), ("loss",)))
        second = "next_sentence" if spec.name == "bert-nsp" else "sentence_order"
        return Model(tuple(layers), ("masked_lm", second), tied)
    layers.append(Layer("head", partial(Head, spec, data), ("hidden", "labels"), ("loss",)))
    return Model(tuple(layers), ("masked_lm",), tied)


class Embeddings(NormalStart):
    """Sum of word, position and segment embeddings, normalised: (b, s) and (b, s) -> (b, s, h)."""

    def __init__(self, spec: BertSpec, data: Texts) -> None:
        super().__init__()
        self.word = nn.Embedding(data.vocab_size, spec.hidden_size)
        self.position = nn.Embedding(data.sequence_length, spec.hidden_size)
        self.segment = nn.Embedding(SEGMENTS, spec.hidden_size)
        self.norm = nn.LayerNorm(spec.hidden_size, eps=NORM_EPSILON)
        self.dropout = dropout(spec.dropout)

    def forward(self, input_ids: Tensor, segment_ids: Tensor) -> Tensor:
        """Word, segment and position, in the order of the published code."""
        hidden = self.word(input_ids) + self.segment(segment_ids) + self.position.weight[: input_ids.shape[1]]
        return cast(Tensor, self.dropout(self.norm(hidden)))


class Attention(NormalStart):
    """Self attention, residual, norm: (b, s, h) and the mask (b, s), true where a token is -> (b, s, h)."""

    def __init__(self, spec: BertSpec) -> None:
        super().__init__()
        self.heads = spec.num_heads
        self.dropout_share = spec.dropout
        self.query_key_value = nn.Linear(spec.hidden_size, 3 * spec.hidden_size)
        self.output = nn.Linear(spec.hidden_size, spec.hidden_size)
        self.dropout = dropout(spec.dropout)
        self.norm = nn.LayerNorm(spec.hidden_size, eps=NORM_EPSILON)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Every token looks at the tokens that the mask calls real."""
        batch, length, width = hidden.shape
        projected = self.query_key_value(hidden).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
        context = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attention_mask[:, None, None, :],
            dropout_p=self.dropout_share if self.training else 0.0,
        )
        context = context.transpose(1, 2).reshape(batch, length, width)
        return cast(Tensor, self.norm(hidden + self.dropout(self.output(context))))


class FeedForward(NormalStart):
    """Two linear maps with a gelu between, residual, norm: (b, s, h) -> (b, s, h)."""

    def __init__(self, spec: BertSpec) -> None:
        super().__init__()
        width = spec.intermediate_size or 4 * spec.hidden_size
        self.expand = nn.Linear(spec.hidden_size, width)
        self.contract = nn.Linear(width, spec.hidden_size)
        self.dropout = dropout(spec.dropout)
        self.norm = nn.LayerNorm(spec.hidden_size, eps=NORM_EPSILON)

    def forward(self, hidden: Tensor) -> Tensor:
        """Each token by itself."""
        return cast(Tensor, self.norm(hidden + self.dropout(self.contract(F.gelu(self.expand(hidden))))))


class Head(NormalStart):
    """Masked-LM loss: (b, s, h) and labels (b, s) -> (1,), the sum over the labels that are to be predicted."""

    borrowed = "decoder"

    def __init__(self, spec: BertSpec, data: Texts) -> None:
        super().__init__()
        self.transform = nn.Linear(spec.hidden_size, spec.hidden_size)
        self.norm = nn.LayerNorm(spec.hidden_size, eps=NORM_EPSILON)
        self.decoder = nn.Linear(spec.hidden_size, data.vocab_size)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., h) -> (..., vocabulary)."""
        return cast(Tensor, self.decoder(self.norm(F.gelu(self.transform(hidden)))))

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Logits are computed only where a label is: they are by far the widest tensor of the model."""
        labels = labels.flatten()
        places = (labels != IGNORED).nonzero().squeeze(1)
        chosen = hidden.flatten(0, 1).index_select(0, places)
        loss = F.cross_entropy(self.logits(chosen).float(), labels.index_select(0, places), reduction="sum")
        return loss.reshape(1)

    def scores(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Evaluation: how many hidden tokens were the likeliest, and among the five likeliest."""
        return token_scores(self.logits(hidden), labels)


class OrderHead(Head):
    """Masked-LM and sentence-order loss: also takes order_labels (b,); -> (2,), both sums."""

    def __init__(self, spec: BertSpec, data: Texts) -> None:
        super().__init__(spec, data)
        self.pooler = nn.Linear(spec.hidden_size, spec.hidden_size)
        self.classifier = nn.Linear(spec.hidden_size, 2)

    def order_logits(self, hidden: Tensor) -> Tensor:
        """(b, s, h) -> (b, 2): in order, swapped; read off the first token."""
        return cast(Tensor, self.classifier(torch.tanh(self.pooler(hidden[:, 0]))))

    def forward(self, hidden: Tensor, labels: Tensor, order_labels: Tensor) -> Tensor:  # type: ignore[override]
        """The terms in the order of ``Model.losses``."""
        order = F.cross_entropy(self.order_logits(hidden).float(), order_labels, reduction="sum")
        return torch.cat([super().forward(hidden, labels), order.reshape(1)])

    def scores(self, hidden: Tensor, labels: Tensor, order_labels: Tensor) -> Tensor:  # type: ignore[override]
        """Of the hidden tokens."""
        return super().scores(hidden, labels)
