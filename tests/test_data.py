"""Masked-LM minibatches: pure functions of their number, framed, masked and swapped as published."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.texts import BATCH, LENGTH, VOCABULARY, source_of, spec_of, write_text
from worker.data import signature
from worker.data.base import IGNORED, Minibatch, entropy
from worker.data.masked_lm import _windows
from worker.data.tokenizer import CLS, MASK, PAD, SEP, SPECIAL_TOKENS


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def equal(one: Minibatch, other: Minibatch) -> bool:
    tensors = [{**minibatch.inputs, **minibatch.targets} for minibatch in (one, other)]
    return all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0]) and one.counts == other.counts


def originals(minibatch: Minibatch) -> Tensor:
    """``input_ids`` before masking."""
    labels = minibatch.targets["labels"]
    return torch.where(labels == IGNORED, minibatch.inputs["input_ids"], labels)


def windows_of(minibatch: Minibatch) -> list[tuple[int, ...]]:
    """The text of each row, as it stood in the document."""
    return [tuple(token for token in row if token > MASK) for row in originals(minibatch).tolist()]


def test_a_minibatch_depends_on_its_number_alone(text: Path, cache: Path) -> None:
    one, other = source_of(spec_of(text), cache), source_of(spec_of(text), cache)
    forth = [one.minibatch(number) for number in range(60)]
    back = [other.minibatch(number) for number in reversed(range(60))]
    assert all(equal(a, b) for a, b in zip(forth, reversed(back), strict=True))


def test_each_epoch_has_every_example_once(text: Path, cache: Path) -> None:
    source = source_of(spec_of(text, minibatch_size=1), cache)
    epochs = [
        [windows_of(source.minibatch(epoch * len(source) + place))[0] for place in range(len(source))]
        for epoch in range(2)
    ]
    assert Counter(epochs[0]) == Counter(epochs[1])
    assert epochs[0] != epochs[1]
    assert len(set(epochs[0])) >= 0.9 * len(source)  # a file may repeat itself, an epoch may not


def test_the_size_of_minibatches_does_not_change_examples(text: Path, cache: Path) -> None:
    singles = source_of(spec_of(text, minibatch_size=1), cache)
    sevens = source_of(spec_of(text, minibatch_size=7), cache)
    number = len(singles) // 7  # the minibatch that reaches into the second epoch
    rows = [singles.minibatch(7 * number + row).inputs["input_ids"][0] for row in range(7)]
    assert torch.equal(sevens.minibatch(number).inputs["input_ids"], torch.stack(rows))


def test_masks_and_order_change_with_epoch_and_seed(text: Path, cache: Path) -> None:
    source, reseeded = source_of(spec_of(text), cache), source_of(spec_of(text, seed=2), cache)
    assert not equal(source.minibatch(0), reseeded.minibatch(0))
    alone = source_of(spec_of(text / "short.txt", sequence_length=8, minibatch_size=1), cache)
    assert any(not equal(alone.minibatch(0), alone.minibatch(len(alone) * epoch)) for epoch in range(1, 5))


def test_minibatches_are_what_the_signature_says(text: Path, cache: Path) -> None:
    spec = spec_of(text, sentence_order=True)
    minibatch, promised = source_of(spec, cache).minibatch(3), signature(spec)
    for specs, tensors in ((promised.inputs, minibatch.inputs), (promised.targets, minibatch.targets)):
        assert {name: (t.shape, t.dtype) for name, t in specs.items()} == {
            name: (tuple(t.shape), t.dtype) for name, t in tensors.items()
        }
    assert minibatch.counts == (int((minibatch.targets["labels"] != IGNORED).sum()), BATCH)


def test_rows_are_two_framed_passages_and_padding(text: Path, cache: Path) -> None:
    source = source_of(spec_of(text), cache)
    for number in range(20):
        minibatch = source.minibatch(number)
        ids, rows = originals(minibatch), range(BATCH)
        for row in rows:
            real = int(minibatch.inputs["attention_mask"][row].sum())
            ends = (ids[row] == SEP).nonzero().flatten().tolist()
            assert ids[row, 0] == CLS and len(ends) == 2 and 1 < ends[0] < ends[1] - 1 == real - 2
            assert minibatch.inputs["attention_mask"][row, :real].all() and (ids[row, real:] == PAD).all()
            second = minibatch.inputs["segment_ids"][row].nonzero().flatten().tolist()
            assert second == list(range(ends[0] + 1, real))


def test_a_short_document_is_padded(text: Path, cache: Path) -> None:
    source = source_of(spec_of(text, minibatch_size=1), cache)
    real = {int(source.minibatch(number).inputs["attention_mask"].sum()) for number in range(len(source))}
    assert len(real) == 2 and max(real) == LENGTH


def test_variable_minibatches_end_with_their_longest_row(text: Path, cache: Path) -> None:
    whole = source_of(spec_of(text), cache)
    cut = source_of(spec_of(text, variable=True), cache)
    assert cut.signature.varies
    for number in range(20):
        row, short = whole.minibatch(number), cut.minibatch(number)
        longest = int(row.inputs["attention_mask"].sum(1).max())
        for name, tensor in {**row.inputs, **row.targets}.items():
            assert torch.equal({**short.inputs, **short.targets}[name], tensor[:, :longest])


def test_masking_is_berts(text: Path, cache: Path) -> None:
    source = source_of(spec_of(text, minibatch_size=8), cache)
    batches = [source.minibatch(number) for number in range(400)]
    labels = torch.cat([b.targets["labels"] for b in batches])
    ids = torch.cat([b.inputs["input_ids"] for b in batches])
    real = torch.cat([b.inputs["attention_mask"] for b in batches]).sum(dim=1) - 3
    chosen = labels != IGNORED
    assert torch.equal(chosen.sum(dim=1), (real * 0.15).round().clamp(min=1).long())
    assert labels[chosen].min() >= len(SPECIAL_TOKENS)
    masked, kept = ids[chosen] == MASK, ids[chosen] == labels[chosen]
    assert abs(masked.float().mean() - 0.8) < 0.02
    assert abs(kept.float().mean() - 0.1) < 0.02
    assert ids[chosen][~masked].min() >= len(SPECIAL_TOKENS)
    assert ids[chosen].max() < VOCABULARY
    assert not (ids[~chosen] == MASK).any()


def test_every_position_is_as_likely_to_be_masked(text: Path, cache: Path) -> None:
    source = source_of(spec_of(text, minibatch_size=8), cache)
    chosen = torch.cat([source.minibatch(number).targets["labels"] != IGNORED for number in range(400)])
    # Every position but the first and the last is text or, in one row of about fifteen, the separator.
    assert (chosen[:, 1:-1].float().mean(dim=0) - 0.13).abs().max() < 0.04


def test_swapped_passages_are_labelled(text: Path, cache: Path) -> None:
    source = source_of(spec_of(text, sentence_order=True, minibatch_size=8), cache)
    plain = source_of(spec_of(text, minibatch_size=8), cache)
    labels = []
    for number in range(60):
        minibatch, in_order = source.minibatch(number), windows_of(plain.minibatch(number))
        swapped = minibatch.targets["order_labels"].bool().tolist()
        second = minibatch.inputs["segment_ids"].bool()
        for row, ids in enumerate(originals(minibatch)):
            a, b = ([t for t in ids[where].tolist() if t > MASK] for where in (~second[row], second[row]))
            assert tuple(b + a if swapped[row] else a + b) == in_order[row]
        labels += swapped
    assert 0.4 < sum(labels) / len(labels) < 0.6


def test_baseline_is_the_entropy_of_the_targets(text: Path, cache: Path) -> None:
    assert entropy(np.array([0, 5, 5, 5, 5])) == pytest.approx(math.log(4))
    source = source_of(spec_of(text, minibatch_size=64), cache)
    labels = torch.cat([source.minibatch(number).targets["labels"].flatten() for number in range(100)])
    assert entropy(np.bincount(labels[labels != IGNORED])) == pytest.approx(source.baseline_loss, abs=0.05)
    with_order = source_of(spec_of(text, sentence_order=True), cache)
    assert with_order.baseline_loss == source.baseline_loss


@given(st.lists(st.integers(0, 70), max_size=20), st.integers(5, 30))
def test_windows_cover_every_document(lengths: list[int], room: int) -> None:
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    windows = list(zip(*_windows(bounds, room), strict=True))
    assert len(set(windows)) == len(windows)
    for start, end in pairwise(bounds):
        own = [(s, n) for s, n in windows if start <= s < end]
        covered = {token for s, n in own for token in range(s, s + n)}
        assert covered == (set(range(start, end)) if end - start >= 2 else set())
        assert all(n == min(room, end - start) for _, n in own)
