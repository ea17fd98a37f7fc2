"""What several models are made of: how parameters start, attention with heads, losses as sums."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worker.data.base import IGNORED

INITIAL_DEVIATION = 0.02


class NormalStart(nn.Module):
    """A layer whose matrices and embeddings start normal(0, 0.02), its biases at zero, its norms at one.

    ``borrowed`` names the submodule whose weight is another layer's and is left alone.
    """

    borrowed: str | None = None

    def reset_parameters(self) -> None:
        """Set all parameters."""
        for name, module in self.named_modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear | nn.Embedding):
                if name != self.borrowed:
                    nn.init.normal_(module.weight, std=INITIAL_DEVIATION)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)


def dropout(share: float) -> nn.Module:
    """No operation at all where nothing is dropped."""
    return nn.Dropout(share) if share else nn.Identity()


class MultiHead(nn.Module):
    """Attention with heads: queries from (b, q, h), keys and values from (b, k, h) -> (b, q, h).

    Args:
        dropout: of attention weights.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.share = heads, dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, hidden: Tensor, memory: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """``mask`` (b, k) is true where a token of ``memory`` is."""
        batch, queries, width = hidden.shape
        query = self.query(hidden).view(batch, queries, self.heads, -1).transpose(1, 2)
        both = self.key_value(memory).view(batch, memory.shape[1], 2, self.heads, -1)
        key, value = both.permute(2, 0, 3, 1, 4).unbind(0)
        context = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else mask[:, None, None, :],
            dropout_p=self.share if self.training else 0.0,
            is_causal=causal,
        )
        return cast(Tensor, self.output(context.transpose(1, 2).reshape(batch, queries, width)))


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy summed over the labels that are to be predicted: (..., c) and (...) -> (1,), float32."""
    flat = logits.float().flatten(0, -2)
    return F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="sum").reshape(1)


def token_scores(logits: Tensor, labels: Tensor) -> Tensor:
    """How many labels are the likeliest one, and among the five likeliest: (..., c) and (...) -> (2,), float64."""
    labels = labels.flatten()
    places = (labels != IGNORED).nonzero().squeeze(1)
    wanted = labels.index_select(0, places)
    best = logits.flatten(0, -2).index_select(0, places).topk(min(5, logits.shape[-1]), dim=-1).indices
    hits = best == wanted[:, None]
    return torch.stack([hits[:, :1].sum(), hits.sum()]).double()
