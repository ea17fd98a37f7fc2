"""BERT's pre-training data as NVIDIA's scripts write them: many HDF5 shards of masked pairs, each with its labels.

A shard has ``input_ids``, ``input_mask``, ``segment_ids`` (n, s), ``masked_lm_positions``, ``masked_lm_ids`` (n, p)
where position 0 ends a row, and ``next_sentence_labels`` (n,), 1 where the second passage is from elsewhere.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from worker.data.bad_records import BadRecords
from worker.data.base import IGNORED, Minibatch, Signature
from worker.data.corpus import check_shards, files_below
from worker.data.order import Order
from worker.errors import DataError
from worker.spec.data import Hdf5Spec

KEYS = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions", "masked_lm_ids", "next_sentence_labels")


class MaskedShards:
    """Endless minibatches of sequences that were masked beforehand; a Source.

    Raises:
        DataError: a shard is missing, is no such file, or has sequences of another length.
    """

    def __init__(self, spec: Hdf5Spec, pairs: bool, seed: int, signature: Signature) -> None:
        try:
            import h5py
        except ImportError:
            raise DataError("source hdf5 needs the h5py package", "pip install 'vpipe[hdf5]'") from None
        path = Path(spec.path).expanduser()
        self._paths = [path] if path.is_file() else [p for p in files_below(path, "") if p.suffix in (".hdf5", ".h5")]
        if not self._paths:
            raise DataError(f"no .hdf5 file below {path}", "point data.path at a shard or a folder of them")
        check_shards(self._paths)
        self._shards = [_opened(h5py, file, spec.sequence_length) for file in self._paths]
        self._ends = np.cumsum([len(shard["input_ids"]) for shard in self._shards])
        self._spec, self._pairs = spec, pairs
        self.signature = signature
        self._bad = BadRecords(spec.on_bad_record)
        self.baseline_loss = math.log(spec.vocab_size)  # frequencies are not known without reading everything
        self._order = Order(seed, len(self), spec.minibatch_size)

    def __len__(self) -> int:
        """Examples per epoch."""
        return int(self._ends[-1])

    def minibatch(self, number: int) -> Minibatch:
        """Minibatch ``number`` >= 0: the same tensors whenever and wherever it is asked for."""
        rows = [self._row_or_nothing(example) for example, _ in self._order.rows(number)]
        ids, segments, mask, labels, follows = (np.stack(column) for column in zip(*rows, strict=True))
        inputs = {"input_ids": ids, "segment_ids": segments, "attention_mask": mask}
        targets = {"labels": labels, **({"order_labels": follows} if self._pairs else {})}
        return Minibatch(
            {name: torch.from_numpy(array) for name, array in inputs.items()},
            {name: torch.from_numpy(array) for name, array in targets.items()},
            (int((labels != IGNORED).sum()), *([int((follows != IGNORED).sum())] if self._pairs else [])),
        )

    @property
    def skipped(self) -> int:
        """Records that were wrong so far."""
        return self._bad.count

    def _row_or_nothing(self, example: int) -> tuple[NDArray[Any], ...]:
        """A record; where it is wrong, and such are to be left out, a row without anything to predict."""
        try:
            return self._row(example)
        except _Wrong as wrong:
            self._bad.found(wrong.where, wrong.what)
        empty = np.zeros(self._spec.sequence_length, dtype=np.int64)
        return empty, empty, np.ones(empty.shape, dtype=bool), np.full_like(empty, IGNORED), np.array(IGNORED)

    def _row(self, example: int) -> tuple[NDArray[Any], ...]:
        number = int(np.searchsorted(self._ends, example, side="right"))
        shard, index = self._shards[number], example - int(self._ends[number - 1] if number else 0)
        try:
            columns = {key: np.asarray(shard[key][index], dtype=np.int64) for key in KEYS}
        except OSError as error:
            raise _Wrong(f"{self._paths[number]}", f"record {index} cannot be read ({error})") from None
        labels = np.full(self._spec.sequence_length, IGNORED, dtype=np.int64)
        positions = columns["masked_lm_positions"]
        predicted = int((positions == 0).argmax()) if (positions == 0).any() else len(positions)
        self._check(number, index, columns, predicted)
        labels[positions[:predicted]] = columns["masked_lm_ids"][:predicted]
        mask = columns["input_mask"].astype(bool)
        return columns["input_ids"], columns["segment_ids"], mask, labels, columns["next_sentence_labels"]

    def _check(self, number: int, index: int, columns: dict[str, NDArray[np.int64]], predicted: int) -> None:
        limits = {
            "input_ids": (columns["input_ids"], self._spec.vocab_size),
            "masked_lm_ids": (columns["masked_lm_ids"][:predicted], self._spec.vocab_size),
            "masked_lm_positions": (columns["masked_lm_positions"], self._spec.sequence_length),
            "next_sentence_labels": (columns["next_sentence_labels"], 2),
            "segment_ids": (columns["segment_ids"], 2),
        }
        for key, (values, limit) in limits.items():
            if values.size and not (values.min() >= 0 and values.max() < limit):
                odd = int(values.max() if values.max() >= limit else values.min())
                raise _Wrong(f"{self._paths[number]}", f"{key} of record {index} has {odd}; it must be below {limit}")


class _Wrong(Exception):
    """A record that cannot be used: the file it is in, and why."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(where, what)
        self.where, self.what = where, what


def _opened(h5py: Any, file: Path, length: int) -> Any:
    try:
        shard = h5py.File(file, "r")
    except OSError as error:
        raise DataError(f"{file} is no HDF5 file, or damaged ({error})") from None
    if missing := [key for key in KEYS if key not in shard]:
        raise DataError(f"{file} has no {missing[0]}", f"a shard has {', '.join(KEYS)}")
    if shard["input_ids"].ndim != 2 or shard["input_ids"].shape[1] != length:
        shape = shard["input_ids"].shape
        raise DataError(f"{file}: input_ids is {shape}; data.sequence_length is {length}")
    if len(shard["input_ids"]) == 0:
        raise DataError(f"{file} is empty")
    return shard
