"""LSTMs with attention for translation, after GNMT (Wu et al. 2016), as a list of layers that a cut may fall between.

``source``, ``encoder.0`` in both directions, ``encoder.I`` with residuals from the third on; ``target``, ``decoder.0``
with attention to the encoder's output, ``decoder.I`` that also read the context, ``head``. Attention is additive
(Bahdanau et al. 2015) on the output of the first decoder layer. All start uniform(-0.1, 0.1), as published. Padding
behind a source is read by the LSTMs like any token, but never attended to.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from worker.models.base import Layer, Model
from worker.models.parts import dropout, token_loss, token_scores
from worker.spec.data import ParallelSpec, SyntheticSpec
from worker.spec.model import GnmtSpec

Texts = ParallelSpec | SyntheticSpec

INITIAL_RANGE = 0.1


def build(spec: GnmtSpec, data: Texts) -> Model:
    """The layers for sentences of at most ``data.sequence_length`` tokens out of ``data.vocab_size``."""
    width, embed = spec.hidden_size, partial(Embedding, spec, data)
    layers = [Layer("source", embed, ("source_ids",), ("memory",))]
    for index in range(spec.num_layers):
        build_layer = partial(Recurrent, width, spec.dropout, both_ways=index == 0, residual=index > 1)
        layers.append(Layer(f"encoder.{index}", build_layer, ("memory",), ("memory",)))
    layers.append(Layer("target", embed, ("target_ids",), ("hidden",)))
    attention = ("hidden", "memory", "source_mask")
    layers.append(Layer("decoder.0", partial(Attending, width, spec.dropout), attention, ("hidden", "context")))
    for index in range(1, spec.num_layers):
        build_reading = partial(Reading, width, spec.dropout, residual=index > 1)
        layers.append(Layer(f"decoder.{index}", build_reading, ("hidden", "context"), ("hidden",)))
    layers.append(Layer("head", partial(Head, spec, data), ("hidden", "labels"), ("loss",)))
    return Model(tuple(layers), ("translation",))


class UniformStart(nn.Module):
    """A layer whose parameters all start uniform."""

    def reset_parameters(self) -> None:
        """Set all parameters."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -INITIAL_RANGE, INITIAL_RANGE)


class Embedding(UniformStart):
    """(b, s) -> (b, s, h)."""

    def __init__(self, spec: GnmtSpec, data: Texts) -> None:
        super().__init__()
        self.word = nn.Embedding(data.vocab_size, spec.hidden_size)
        self.dropout = dropout(spec.dropout)

    def forward(self, ids: Tensor) -> Tensor:
        """Words."""
        return cast(Tensor, self.dropout(self.word(ids)))


class Recurrent(UniformStart):
    """An LSTM over the sequence: (b, s, h) -> (b, s, h). In both ways each has half of the width."""

    def __init__(self, width: int, share: float, both_ways: bool = False, residual: bool = False) -> None:
        super().__init__()
        ways = 2 if both_ways else 1
        self.lstm = nn.LSTM(width, width // ways, batch_first=True, bidirectional=both_ways)
        self.dropout, self.residual = dropout(share), residual

    def forward(self, hidden: Tensor) -> Tensor:
        """From the state zero."""
        output = self.dropout(self.lstm(hidden)[0])
        return cast(Tensor, output + hidden if self.residual else output)


class Attending(UniformStart):
    """The decoder's first LSTM, and attention: (b, t, h), (b, s, h), mask (b, s) -> (b, t, h) and context (b, t, h)."""

    def __init__(self, width: int, share: float) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.score = nn.Linear(width, 1, bias=False)
        self.dropout = dropout(share)

    def forward(self, hidden: Tensor, memory: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Additive attention of every output to the source."""
        output = self.lstm(hidden)[0]
        energy = torch.tanh(self.query(output)[:, :, None] + self.key(memory)[:, None])
        scores = self.score(energy).squeeze(-1).masked_fill(~mask[:, None], float("-inf"))
        return self.dropout(output), scores.softmax(dim=-1) @ memory


class Reading(UniformStart):
    """A decoder LSTM that also reads the context: (b, t, h), (b, t, h) -> (b, t, h)."""

    def __init__(self, width: int, share: float, residual: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2 * width, width, batch_first=True)
        self.dropout, self.residual = dropout(share), residual

    def forward(self, hidden: Tensor, context: Tensor) -> Tensor:
        """From the state zero."""
        output = self.dropout(self.lstm(torch.cat([hidden, context], dim=-1))[0])
        return cast(Tensor, output + hidden if self.residual else output)


class Head(UniformStart):
    """Next-token loss: (b, t, h) and labels (b, t) -> (1,), the sum over the labels that are to be predicted."""

    def __init__(self, spec: GnmtSpec, data: Texts) -> None:
        super().__init__()
        self.decoder = nn.Linear(spec.hidden_size, data.vocab_size)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., h) -> (..., vocabulary)."""
        return cast(Tensor, self.decoder(hidden))

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy."""
        return token_loss(self.logits(hidden), labels)

    def scores(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Evaluation: how many next tokens were the likeliest, and among the five likeliest."""
        return token_scores(self.logits(hidden), labels)

    def guesses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Translation: the likeliest next token at every place, (b, t)."""
        return self.logits(hidden).argmax(-1)
