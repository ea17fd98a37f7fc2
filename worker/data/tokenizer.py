"""Text to token numbers: a byte-level BPE trained on the corpus itself, with BERT's special tokens in front.

Byte-level, so that any text has tokens and decodes to itself: case, line breaks and indentation included. Before
merging, text is cut into words, single digits, runs of punctuation, and line breaks together with the indentation that
follows, so a line's end and the next one's depth are one token. A literal ``[MASK]`` in a corpus is ordinary text.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(len(SPECIAL_TOKENS))

WORDS = r"\n+[ \t]*| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
"""What a token never reaches across."""

TRAINING_CHARACTERS = 64_000_000
"""A larger corpus is thinned to evenly spaced pieces: the merges hardly change, the time would."""

BATCH = 64
"""Pieces encoded in one call: enough to keep the library's threads busy, little enough to report progress."""


def train(pieces: list[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most ``vocab_size`` entries; the same for the same pieces, whatever the number of threads."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.encode_special_tokens = True
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    stride = -(-sum(map(len, pieces)) // TRAINING_CHARACTERS) or 1
    tokenizer.train_from_iterator(pieces[::stride], trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, pieces: list[str]) -> Iterator[NDArray[np.int64]]:
    """The token numbers of each piece, in order."""
    for start in range(0, len(pieces), BATCH):
        for encoding in tokenizer.encode_batch_fast(pieces[start : start + BATCH], add_special_tokens=False):
            yield np.array(encoding.ids, dtype=np.int64)
