"""Tokens that were made beforehand: .npy files, or raw numbers, in one file or in the shards of a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worker.data.corpus import check_shards, files_below
from worker.data.store import Shards, TokenisedCorpus
from worker.errors import DataError
from worker.spec.data import DataSpec

COUNTED = 1 << 26
"""Tokens of each file that are looked at on opening; more would keep a run waiting."""


def open_memmap(spec: DataSpec) -> TokenisedCorpus:
    """The tokens of ``data.path``; each file is one document. Nothing is put between them.

    Raises:
        DataError: there is no such file, one is not as ``dtype`` says, or a token is outside the vocabulary.
    """
    path = Path(spec.path or "").expanduser()
    files = [path] if path.is_file() else [p for p in files_below(path, "") if p.suffix in (".npy", ".bin")]
    if not files:
        raise DataError(f"no .npy or .bin file below {path}", "point data.path at a file of tokens or a folder of them")
    check_shards(files)
    parts = [_mapped(file, spec.dtype) for file in files]
    counts = np.zeros(spec.vocab_size, dtype=np.int64)
    for file, part in zip(files, parts, strict=True):
        counts += _count(file, part[:COUNTED], spec.vocab_size)
    tokens = Shards(parts)
    return TokenisedCorpus(tokens, tokens.bounds, counts, separate=False)


def _mapped(file: Path, dtype: str) -> NDArray[np.integer]:
    size = file.stat().st_size
    if size == 0:
        raise DataError(f"{file} is empty")
    array: NDArray[np.integer]
    try:
        if file.suffix == ".npy":
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        elif size % np.dtype(dtype).itemsize:
            raise DataError(f"{file} has {size} bytes, which is no whole number of {dtype}", "data.dtype names another")
        else:
            array = np.memmap(file, dtype=dtype, mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(f"{file} holds {array.dtype} {array.shape}; it must be one row of whole numbers")
    return array


def _count(file: Path, tokens: NDArray[np.integer], vocab_size: int) -> NDArray[np.int64]:
    outside = (tokens < 0) | (tokens >= vocab_size)
    if outside.any():
        place = int(outside.argmax())
        message = f"{file}: token {place} is {int(tokens[place])}; data.vocab_size is {vocab_size}"
        raise DataError(message, "raise data.vocab_size, or set data.dtype to what the file holds")
    return np.bincount(tokens.astype(np.int64), minlength=vocab_size)
