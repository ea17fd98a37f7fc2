"""The data: minibatches as pure functions of their number, BERT's masking, the tokenizer, the cache, and its errors."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
import sysconfig
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from torch import Tensor

from worker.data import open_source, signature, tokenizer
from worker.data.base import IGNORED, Minibatch
from worker.data.corpus import find
from worker.data.masked_lm import MaskedLM, _entropy, _windows
from worker.data.store import _cut
from worker.data.tokenizer import CLS, MASK, PAD, SEP, SPECIAL_TOKENS
from worker.errors import DataError
from worker.spec.cluster import BertSpec, ClusterSpec, DataSpec, RunSpec

LENGTH, BATCH, VOCABULARY = 32, 4, 400


def spec_of(path: Path, sentence_order: bool = False, seed: int = 1, **settings: object) -> ClusterSpec:
    sizes = {"sequence_length": LENGTH, "minibatch_size": BATCH, "vocab_size": VOCABULARY, **settings}
    return ClusterSpec(
        machines=["cpu"],
        model=BertSpec(sentence_order=sentence_order),
        data=DataSpec(source="text", path=str(path), **sizes),
        run=RunSpec(seed=seed),
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a few real documents and a very short one."""
    folder = tmp_path_factory.mktemp("text")
    library = Path(sysconfig.get_path("stdlib"))
    for name in ("bisect.py", "stat.py", "abc.py"):
        (folder / name).write_bytes((library / name).read_bytes())
    (folder / "short.txt").write_text("one short line, and little more\n")
    (folder / "empty.txt").touch()
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def source_of(spec: ClusterSpec, cache: Path) -> MaskedLM:
    source = open_source(spec, cache)
    assert isinstance(source, MaskedLM)
    return source


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
    assert _entropy(np.array([0, 5, 5, 5, 5])) == pytest.approx(math.log(4))
    source = source_of(spec_of(text, minibatch_size=64), cache)
    labels = torch.cat([source.minibatch(number).targets["labels"].flatten() for number in range(100)])
    assert _entropy(np.bincount(labels[labels != IGNORED])) == pytest.approx(source.baseline_loss, abs=0.05)
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


TRICKY = 'def f(x):\n\n\tif x == "[MASK] [SEP]":\r\n        return "ä€𝄞"  # \x00 \ufeff\n   \n'


def test_tokens_decode_to_the_text() -> None:
    trained = tokenizer.train([TRICKY] * 3, 300)
    (ids,) = tokenizer.encode(trained, [TRICKY])
    assert trained.decode(ids.tolist(), skip_special_tokens=False) == TRICKY
    assert ids.min() >= len(SPECIAL_TOKENS)


def test_a_line_break_and_its_indentation_are_one_token() -> None:
    trained = tokenizer.train(["if x:\n        y\n        z\n"] * 9, 300)
    assert trained.encode("x:\n        z", add_special_tokens=False).tokens == ["x", ":", "ĊĠĠĠĠĠĠĠĠ", "z"]


def test_long_documents_are_cut_before_line_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.data.store.PIECE_CHARACTERS", 10)
    document = "abc\ndefgh\nij\n" + "x" * 25 + "\ny"
    pieces = list(_cut(document))
    assert "".join(pieces) == document
    assert pieces[:2] == ["abc\ndefgh", "\nij"] and max(map(len, pieces)) == 10


PREPARE = """
import sys
from pathlib import Path
from worker.data import open_source
from worker.spec.cluster import ClusterSpec, DataSpec
data = DataSpec(source="text", path=sys.argv[1], vocab_size=400, sequence_length=32)
open_source(ClusterSpec(machines=["cpu"], data=data), Path(sys.argv[2]))
"""


def start_preparing(text: Path, cache: Path, threads: str = "true") -> subprocess.Popen[bytes]:
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": threads}
    return subprocess.Popen([sys.executable, "-c", PREPARE, str(text), str(cache)], env=environment)


def hashes(cache: Path) -> dict[str, str]:
    """SHA-256 of every file of the one folder in the cache."""
    (folder,) = cache.iterdir()
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_preparation_is_the_same_in_other_processes(text: Path, tmp_path: Path) -> None:
    caches = [tmp_path / threads for threads in ("true", "false")]
    running = [start_preparing(text, cache, cache.name) for cache in caches]
    assert [process.wait(60) for process in running] == [0, 0]
    assert hashes(caches[0]) == hashes(caches[1])


def test_two_may_prepare_at_a_time(text: Path, tmp_path: Path) -> None:
    running = [start_preparing(text, tmp_path / "cache") for _ in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    assert len(hashes(tmp_path / "cache")) == 5


def test_the_cache_is_used_again(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = source_of(spec_of(text), tmp_path)
    assert "training the tokenizer" in capsys.readouterr().out
    again = source_of(spec_of(text), tmp_path)
    assert capsys.readouterr().out == ""
    assert equal(first.minibatch(5), again.minibatch(5))


@pytest.mark.parametrize("name", ["tokens.npy", "bounds.npy", "counts.npy", "tokenizer.json", "sha256.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_cache_is_prepared_again(text: Path, tmp_path: Path, name: str, damage: str) -> None:
    source_of(spec_of(text), tmp_path)
    before = hashes(tmp_path)
    (folder,) = tmp_path.iterdir()
    if damage == "cut":
        os.truncate(folder / name, (folder / name).stat().st_size - 3)
    else:
        (folder / name).unlink()
    source_of(spec_of(text), tmp_path)
    assert hashes(tmp_path) == before


def test_an_interrupted_preparation_leaves_nothing(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("worker.data.store._hash", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_source(spec_of(text), tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_text_or_vocabulary_is_another_cache(tmp_path: Path) -> None:
    file, cache = tmp_path / "text", tmp_path / "cache"
    file.write_text("some words, again and again " * 9)
    source_of(spec_of(file), cache)
    source_of(spec_of(file, vocab_size=301), cache)
    file.write_text("other words, again and again " * 9)
    source_of(spec_of(file), cache)
    assert len(list(cache.iterdir())) == 3


def test_the_cache_is_private(text: Path, tmp_path: Path) -> None:
    source_of(spec_of(text), tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_the_tokenizer_is_kept(text: Path, tmp_path: Path) -> None:
    source_of(spec_of(text), tmp_path)
    (folder,) = tmp_path.iterdir()
    kept = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [kept.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert kept.get_vocab_size() == VOCABULARY


def test_the_standard_library_is_found_without_what_is_installed() -> None:
    corpus = find(DataSpec())
    relative = [path.relative_to(corpus.root) for path in corpus.files]
    assert Path("argparse.py") in relative and Path("json/decoder.py") in relative
    assert all(path.suffix == ".py" and "site-packages" not in path.parts for path in relative)


def test_links_to_folders_and_hidden_files_are_passed_over(text: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "b.txt").write_text("b")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / ".hidden").write_bytes(b"\xff")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    names = [path.name for path in find(DataSpec(source="text", path=str(tmp_path))).files]
    assert names == ["a.txt", "b.txt"]


def test_a_file_that_is_not_utf8_is_named(text: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Müller".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8 text: byte 1 is 0xfc"):
        open_source(spec_of(tmp_path), tmp_path / "cache")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ({}, "no text files below"),
        ({"a.txt": ""}, "the corpus has 0 tokens; one sequence of 32 needs 29"),
        ({"a.txt": "too short"}, "the corpus has 2 tokens; one sequence of 32 needs 29"),
    ],
)
def test_too_little_data_is_said(tmp_path: Path, content: dict[str, str] | None, message: str) -> None:
    if content is not None:
        (tmp_path / "data").mkdir()
        for name, words in content.items():
            (tmp_path / "data" / name).write_text(words)
    with pytest.raises(DataError, match=message):
        open_source(spec_of(tmp_path / "data"), tmp_path / "cache")


def test_text_in_documents_of_one_token_is_too_little(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}.txt").write_text("x")
    with pytest.raises(DataError, match="no document"):
        open_source(spec_of(tmp_path), tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_said(text: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot keep the tokenised corpus"):
        open_source(spec_of(text), tmp_path / "file" / "cache")
