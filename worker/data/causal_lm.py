"""Next-token examples: all documents end to end, each behind a separator, cut into sequences of one length.

Every token of the corpus is predicted once an epoch; only the last sequence is padded.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from worker.data.base import IGNORED, Minibatch, Signature, entropy
from worker.data.order import Order
from worker.data.store import TokenisedCorpus
from worker.data.tokenizer import PAD, SEP
from worker.errors import DataError
from worker.spec.data import DataSpec


class CausalLM:
    """Endless minibatches of text whose labels are the next tokens; a Source.

    Raises:
        DataError: the corpus is shorter than one sequence.
    """

    def __init__(self, corpus: TokenisedCorpus, spec: DataSpec, seed: int, signature: Signature) -> None:
        self._stream = Stream(corpus)
        length = spec.sequence_length
        if len(self._stream) <= length:
            raise DataError(
                f"the corpus has {len(corpus.tokens)} tokens; one sequence needs {length + 1}",
                "add text, or lower data.sequence_length",
            )
        self._length = length
        self.signature = signature
        self.baseline_loss = entropy(corpus.counts)
        self.skipped = corpus.skipped
        self._order = Order(seed, len(self), spec.minibatch_size)

    def __len__(self) -> int:
        """Examples per epoch."""
        return -(-(len(self._stream) - 1) // self._length)

    def minibatch(self, number: int) -> Minibatch:
        """Minibatch ``number`` >= 0: the same tensors whenever and wherever it is asked for."""
        rows = self._order.rows(number)
        ids = np.full((len(rows), self._length), PAD, dtype=np.int64)
        labels = np.full_like(ids, IGNORED)
        for row, (example, _) in enumerate(rows):
            start = example * self._length
            window = self._stream.read(start, min(start + self._length + 1, len(self._stream)))
            ids[row, : len(window) - 1] = window[:-1]
            labels[row, : len(window) - 1] = window[1:]
        count = int((labels != IGNORED).sum())
        return Minibatch({"input_ids": torch.from_numpy(ids)}, {"labels": torch.from_numpy(labels)}, (count,))


class Stream:
    """All documents of a corpus as one row of tokens, with a separator before each where the corpus has none."""

    def __init__(self, corpus: TokenisedCorpus) -> None:
        self._tokens = corpus.tokens
        documents = corpus.bounds[:-1] if corpus.separate else corpus.bounds[:0]
        self._separators = documents + np.arange(len(documents))

    def __len__(self) -> int:
        return len(self._tokens) + len(self._separators)

    def read(self, start: int, end: int) -> NDArray[np.int64]:
        """Tokens ``start`` to ``end``."""
        before, behind = np.searchsorted(self._separators, (start, end))
        tokens = np.full(end - start, SEP, dtype=np.int64)
        is_text = np.ones(end - start, dtype=bool)
        is_text[self._separators[before:behind] - start] = False
        tokens[is_text] = self._tokens[start - before : end - behind]
        return tokens
