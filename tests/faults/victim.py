"""A small model, each of whose layers does what a file beside this one tells its rank to do, once."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn


def suffer() -> None:
    """Execute ``rank-N.do``, if there is one for this rank."""
    file = Path(__file__).with_name(f"rank-{os.environ.get('VPIPE_RANK')}.do")
    if file.exists():
        code = file.read_text()
        file.unlink()
        exec(compile(code, "injury", "exec"), {"torch": torch})


class Words(nn.Embedding):
    """The first layer. It takes its time, so that a run which is waiting to be hurt leaves the machine to others."""

    def forward(self, ids: Tensor) -> Tensor:
        suffer()
        time.sleep(0.005)
        return super().forward(ids)


class Mix(nn.Module):
    """A layer with dropout, so that random numbers count."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.norm, self.drop = nn.Linear(width, width), nn.LayerNorm(width), nn.Dropout(0.1)

    def forward(self, hidden: Tensor) -> Tensor:
        suffer()
        result: Tensor = self.norm(hidden + self.drop(self.inner(hidden).tanh()))
        return result


class Head(nn.Linear):
    """The last layer."""

    def forward(self, hidden: Tensor) -> Tensor:
        suffer()
        return super().forward(hidden)


def build(vocab_size: int, depth: int, width: int = 16, label: str = "") -> list[nn.Module]:
    """``depth`` layers between the first and the last. ``label`` means nothing."""
    return [Words(vocab_size, width), *[Mix(width) for _ in range(depth)], Head(width, vocab_size)]
