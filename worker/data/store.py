"""The tokenised corpus on disk: prepared once for a content and a vocabulary, then memory-mapped by every run.

One folder per key. It is written aside and renamed, and each file's hash is checked on opening, so a preparation that
was killed, damaged, or run twice at a time is at worst done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Tokenizer

from worker.data import tokenizer as text
from worker.data.corpus import Corpus
from worker.errors import DataError

FORMAT = 1
"""Part of the key: raised when what is stored changes its meaning."""

PIECE_CHARACTERS = 1 << 20
"""Longer documents are encoded piece by piece, cut before a line break: the library needs 100 bytes for a character."""

TOKENS, BOUNDS, COUNTS, TOKENIZER, HASHES = "tokens.npy", "bounds.npy", "counts.npy", "tokenizer.json", "sha256.json"
SKIPPED = "skipped"


@dataclass(frozen=True)
class TokenisedCorpus:
    """All documents end to end.

    ``tokens`` are uint16, or int32 for a vocabulary beyond that; document ``i`` is ``tokens[bounds[i]:bounds[i + 1]]``;
    ``counts[t]`` is how often token ``t`` occurs, with one entry for each token of the vocabulary. ``separate`` says
    whether documents still need something between them; ``skipped`` counts records that were left out; ``tokenizer`` is
    its own JSON.
    """

    tokens: NDArray[np.integer] | Shards
    bounds: NDArray[np.int64]
    counts: NDArray[np.int64]
    separate: bool = True
    skipped: int = 0
    tokenizer: str = ""


class Shards:
    """Several arrays end to end, read by slices."""

    def __init__(self, parts: list[NDArray[np.integer]]) -> None:
        self._parts = parts
        self.bounds = np.concatenate([[0], np.cumsum([len(part) for part in parts])])

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def __getitem__(self, wanted: slice) -> NDArray[np.int64]:
        start, stop, _ = wanted.indices(len(self))
        first, last = np.searchsorted(self.bounds, (start, max(start, stop - 1)), side="right") - 1
        pieces = [
            self._parts[part][max(0, start - self.bounds[part]) : max(0, stop - self.bounds[part])]
            for part in range(first, min(last, len(self._parts) - 1) + 1)
        ]
        return np.concatenate([np.zeros(0, dtype=np.int64), *pieces])


def tokenizer_json(corpus: Corpus, vocab_size: int, cache: Path) -> str:
    """The tokenizer that was trained on ``corpus``, as its own JSON; prepared if need be. Raises as open_tokenised."""
    return open_tokenised(corpus, vocab_size, cache).tokenizer


def _folder(corpus: Corpus, digest: str, vocab_size: int, cache: Path, tokenizer: str | None) -> Path:
    settings = f"{FORMAT} {digest} {vocab_size} {text.WORDS} {text.TRAINING_CHARACTERS} {tokenizers.__version__}"
    settings += f" {tokenizer}" if tokenizer else ""
    return cache / f"{corpus.name}-{hashlib.sha256(settings.encode()).hexdigest()[:32]}"


def open_tokenised(corpus: Corpus, vocab_size: int, cache: Path, tokenizer: str | None = None) -> TokenisedCorpus:
    """The tokenised corpus from the cache, prepared there first if need be. Prints its progress.

    Preparing holds the whole text in memory; reading what was prepared holds nothing.

    Args:
        tokenizer: as JSON, in place of one trained on the corpus.
    Raises:
        DataError: the text cannot be read, or nothing can be written to ``cache``.
    """
    digest = corpus.digest()
    folder = _folder(corpus, digest, vocab_size, cache, tokenizer)
    if folder.exists():
        try:
            return _load(folder)
        except (OSError, ValueError, KeyError, TypeError):
            print(f"data: {folder} is damaged: preparing it again", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    try:
        return _prepare(corpus, digest, vocab_size, folder, tokenizer)
    except OSError as error:
        raise DataError(
            f"cannot keep the tokenised corpus below {cache}: {error.strerror or error}",
            "make room or give write permission there, or set VPIPE_HOME to another folder",
        ) from None


def _load(folder: Path) -> TokenisedCorpus:
    """Raises OSError, ValueError, KeyError or TypeError where anything is missing or altered."""
    hashes = json.loads((folder / HASHES).read_bytes())
    for name in (TOKENS, BOUNDS, COUNTS, TOKENIZER):
        if _hash(folder / name) != hashes[name]:
            raise ValueError(f"{name} is altered")
    tokens, bounds, counts = (np.load(folder / name, mmap_mode="r") for name in (TOKENS, BOUNDS, COUNTS))
    vocabulary = (folder / TOKENIZER).read_text(encoding="utf-8")
    return TokenisedCorpus(tokens, bounds, counts, skipped=int(hashes.get(SKIPPED, 0)), tokenizer=vocabulary)


def _prepare(corpus: Corpus, digest: str, vocab_size: int, folder: Path, tokenizer: str | None) -> TokenisedCorpus:
    started = time.monotonic()
    pieces, owners = _pieces(corpus)
    characters = sum(map(len, pieces))
    how = "training the tokenizer" if tokenizer is None else "with the tokenizer of the training data"
    print(f"data: {len(corpus.files)} files, {characters / 1e6:.1f} M characters: {how}", flush=True)
    trained = text.train(pieces, vocab_size) if tokenizer is None else Tokenizer.from_str(tokenizer)
    tokens, bounds, counts = _encode(trained, pieces, owners)
    if corpus.digest() != digest:
        raise DataError(f"files below {corpus.root} changed while they were read", "start again when they are at rest")
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write(aside, trained, tokens, bounds, counts, corpus.bad.count)
        loaded = _load(aside)
        with suppress(OSError):  # another run was first with the same; what is mapped stays, even unlinked
            os.rename(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    print(
        f"data: {len(tokens) / 1e6:.2f} M tokens after {time.monotonic() - started:.0f} s, kept in {folder}", flush=True
    )
    return loaded


def _pieces(corpus: Corpus) -> tuple[list[str], list[int]]:
    """The documents cut into pieces, and for each piece the number of its document."""
    pieces: list[str] = []
    owners: list[int] = []
    for number, document in enumerate(corpus.documents()):
        for piece in _cut(document):
            pieces.append(piece)
            owners.append(number)
    return pieces, owners


def _cut(document: str) -> Iterator[str]:
    start = 0
    while len(document) - start > PIECE_CHARACTERS:
        end = start + PIECE_CHARACTERS
        line = document.rfind("\n", start + 1, end)
        end = line if line > 0 else end
        yield document[start:end]
        start = end
    yield document[start:]


def _encode(
    tokenizer: Tokenizer, pieces: list[str], owners: list[int]
) -> tuple[NDArray[np.integer], NDArray[np.int64], NDArray[np.int64]]:
    """Tokens, bounds and counts of a TokenisedCorpus."""
    size = tokenizer.get_vocab_size()
    dtype = np.uint16 if size <= 1 << 16 else np.int32
    parts: list[NDArray[np.integer]] = [np.zeros(0, dtype=dtype)]
    lengths = np.zeros(owners[-1] + 1 if owners else 0, dtype=np.int64)
    counts = np.zeros(size, dtype=np.int64)
    for number, ids in enumerate(text.encode(tokenizer, pieces)):
        lengths[owners[number]] += len(ids)
        counts += np.bincount(ids, minlength=size)
        parts.append(ids.astype(dtype))
        if (number + 1) * 4 // len(pieces) > number * 4 // len(pieces):
            print(f"data: {(number + 1) * 100 // len(pieces)} % of the text tokenised", flush=True)
    return np.concatenate(parts), np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)]), counts


def _write(
    folder: Path,
    tokenizer: Tokenizer,
    tokens: NDArray[np.integer],
    bounds: NDArray[np.int64],
    counts: NDArray[np.int64],
    skipped: int,
) -> None:
    for name, values in ((TOKENS, tokens), (BOUNDS, bounds), (COUNTS, counts)):
        with _create(folder / name) as file:
            np.save(file, values)
    with _create(folder / TOKENIZER) as file:
        file.write(tokenizer.to_str().encode())
    hashes = {name: _hash(folder / name) for name in (TOKENS, BOUNDS, COUNTS, TOKENIZER)}
    with _create(folder / HASHES) as file:
        file.write(json.dumps({**hashes, **({SKIPPED: skipped} if skipped else {})}).encode())


def _create(path: Path) -> IO[bytes]:
    """A new file of mode 0600."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _hash(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()
