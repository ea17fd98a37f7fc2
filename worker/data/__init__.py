"""Where minibatches come from: the source that cluster.yml names."""

from __future__ import annotations

from pathlib import Path

import torch

from worker.data.base import Minibatch, Signature, Source, TensorSpec
from worker.data.corpus import find
from worker.data.masked_lm import MaskedLM
from worker.data.store import open_tokenised
from worker.spec.cluster import ClusterSpec

__all__ = ["Minibatch", "Signature", "Source", "TensorSpec", "open_source", "signature"]


def signature(spec: ClusterSpec) -> Signature:
    """Shapes and dtypes of every minibatch of the job, known without reading any data."""
    shape = (spec.data.minibatch_size, spec.data.sequence_length)
    whole = TensorSpec(shape, torch.int64)
    inputs = {"input_ids": whole, "segment_ids": whole, "attention_mask": TensorSpec(shape, torch.bool)}
    targets = {"labels": whole}
    if spec.model.sentence_order:
        targets["order_labels"] = TensorSpec(shape[:1], torch.int64)
    return Signature(inputs, targets, spec.data.variable)


def open_source(spec: ClusterSpec, cache: Path) -> Source:
    """The job's data, tokenised into the folder ``cache`` on first use; prints its progress.

    Raises:
        DataError: the text is missing, unreadable, not UTF-8 or too short, or ``cache`` cannot be written.
    """
    corpus = open_tokenised(find(spec.data), spec.data.vocab_size, cache)
    return MaskedLM(corpus, spec.data, spec.model.sentence_order, spec.run.seed, signature(spec))
