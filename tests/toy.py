"""A small model with all a cut must carry (dropout, a mask, a skip connection, a tied weight), and data for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worker.data.base import Minibatch, Signature, TensorSpec
from worker.models.base import Layer, Model
from worker.rng import key

WORDS, WIDTH, LENGTH, BATCH = 23, 12, 7, 3
IGNORE = -100


class Embed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(WORDS, WIDTH)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.word(ids)
        return hidden, hidden.tanh()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(0.2)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        mixed = self.linear(hidden).masked_fill(~mask[..., None], 0.0)
        return self.norm(hidden + self.dropout(F.gelu(mixed)))


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Linear(WIDTH, WORDS)

    def forward(self, hidden: Tensor, skip: Tensor, labels: Tensor) -> Tensor:
        logits = self.decoder(hidden + skip)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")[None]


def model(blocks: int = 4, tied: bool = True) -> Model:
    """``blocks`` + 2 layers; with ``tied`` the head borrows the embedding."""
    layers = [Layer("embed", Embed, ("ids",), ("hidden", "skip"))]
    layers += [Layer(f"block.{i}", Block, ("hidden", "mask"), ("hidden",)) for i in range(blocks)]
    layers += [Layer("head", Head, ("hidden", "skip", "labels"), ("loss",))]
    return Model(tuple(layers), tied={"head.decoder.weight": "embed.word.weight"} if tied else {})


class Data:
    """Random words, a few of them to be predicted; a minibatch may have another number of targets than the next."""

    baseline_loss = 3.0

    def __init__(self, varies: bool = False) -> None:
        """With ``varies`` every minibatch has a length of its own, up to LENGTH."""
        self.signature = Signature(
            inputs={"ids": TensorSpec((BATCH, LENGTH), torch.int64), "mask": TensorSpec((BATCH, LENGTH), torch.bool)},
            targets={"labels": TensorSpec((BATCH, LENGTH), torch.int64)},
            varies=varies,
        )

    def minibatch(self, number: int) -> Minibatch:
        generator = torch.Generator().manual_seed(key("toy", number))
        length = 2 + number % (LENGTH - 1) if self.signature.varies else LENGTH
        ids = torch.randint(WORDS, (BATCH, length), generator=generator)
        mask = torch.rand(BATCH, length, generator=generator) < 0.8
        labels = torch.where(torch.rand(BATCH, length, generator=generator) < 0.4, ids, IGNORE)
        labels[0, 0] = ids[0, 0]
        return Minibatch({"ids": ids, "mask": mask}, {"labels": labels}, (int((labels != IGNORE).sum()),))
